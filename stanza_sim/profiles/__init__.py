"""Files of measured times: of blocks, and of a network's messages."""
