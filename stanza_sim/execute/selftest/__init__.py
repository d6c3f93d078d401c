"""What `stanza-sim selftest` checks on a machine, each check in a process of its own with a limit.

`checks` lists them, `runner` starts their processes, `session` is what the command calls. Checks run in processes that
import torch; the one that starts them does not.
"""
