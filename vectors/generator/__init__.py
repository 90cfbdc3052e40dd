"""What makes the vectors: one module a file, each a pure function from nothing to a document."""
