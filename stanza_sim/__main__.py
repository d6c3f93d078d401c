"""`python -m stanza_sim` is `stanza-sim`, for starters such as torchrun that take a module."""

from stanza_sim.cli import main

if __name__ == "__main__":
    main()
