"""HTTP: JSON in and out, problem documents for everything that goes wrong (RFC 9457).

Modules parse and phrase; what is done, `authority` does. `problems` alone knows statuses.
"""
