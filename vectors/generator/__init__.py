"""Generate the vectors. Each module generates one file, always with the same bytes."""
