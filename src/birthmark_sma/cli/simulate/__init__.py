"""`sma simulate`: cameras and aggregation servers that are simulated, against any authority."""
