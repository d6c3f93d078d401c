"""What other programs measured or saw, in their formats, made into what predictions use. One module a format.

A file is read whole by `reading`, which refuses one of another kind by name (`looks_like`). What a format lacks comes
from `asked`. A cluster is written by `host_file`, `fabric_file` (hosts that options describe) or `wired_hosts` (hosts
that the file describes), with the help of `native`, and loaded before it is there.
"""
