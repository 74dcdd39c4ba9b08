"""One image: what its bytes are, what it looks like, what it declares, why it is rejected."""
