"""Logging of the server: log format, request log, request ids."""
