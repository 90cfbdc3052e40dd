"""What requests pass through: authentication, rate limits, bodies, headers, timeouts, metrics."""
