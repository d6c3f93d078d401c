"""`python -m stanza_sim` is `stanza-sim`, for starters such as torchrun that take a module."""

import os
import sys

if __name__ == "__main__":
    # `-m` puts the current folder first, where a file may be called as a module of the standard library is.
    if sys.path[0] == os.getcwd() != os.path.dirname(os.path.dirname(os.path.abspath(__file__))):
        del sys.path[0]
    from stanza_sim.cli import main

    main()
