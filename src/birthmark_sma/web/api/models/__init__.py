"""The JSON models of the API: a module for each kind of endpoint.

Requests are strict: no type coercion, no unknown fields. Endpoints parse bodies into these models,
and the OpenAPI document publishes them with their docstrings. A parsed model is well formed and no
more: `authority` decides whether a table exists or a key is accepted. Requests of published clients
alone may have unknown fields.
"""
