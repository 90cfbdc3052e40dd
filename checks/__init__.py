"""What `make check` asks beyond the linters."""
