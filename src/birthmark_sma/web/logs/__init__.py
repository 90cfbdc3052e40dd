"""The server's log: its format, the line for each request, and request ids."""
