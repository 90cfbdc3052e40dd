"""Measurements of this server beside the conventional way of doing the same: `make bench`."""
