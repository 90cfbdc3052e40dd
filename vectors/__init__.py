"""Test vectors for every implementation of the protocol, and what makes them."""
