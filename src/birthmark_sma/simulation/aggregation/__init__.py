"""A simulated aggregation server, either inside a run or as an HTTP server for other cameras."""
