"""The HTTP API: a module for each group of endpoints, JSON models, the OpenAPI document."""
