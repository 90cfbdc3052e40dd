"""`sma simulate`: simulate cameras and aggregation servers against any authority."""
