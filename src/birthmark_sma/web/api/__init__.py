"""The HTTP API: one module per group of endpoints, the JSON models and the OpenAPI document.

`app` builds the application from them. Modules here never contain SQL or rules about tokens and
certificates: they call `authority`.
"""
