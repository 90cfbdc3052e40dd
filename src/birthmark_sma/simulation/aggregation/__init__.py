"""A simulated aggregation server, in this process or listening for cameras of others."""
