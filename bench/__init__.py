"""Benchmarks of this server beside a conventional implementation of the same API: `make bench`."""
