"""Test vectors for every implementation of the protocol, and the programs that generate them."""
