"""Serve the authority over HTTP: JSON requests and responses, problem documents for errors.

`server` starts uvicorn. `pipeline` is the list of the steps that every request passes, `routes` the
table of routes. `api` has the endpoints and JSON models, `middleware` the steps, `transport` the
HTTP protocol and TLS, `logs` the log. `dashboard` and `sandbox` are parts of their own. Modules
here parse requests and format responses; `authority` does the work. Only `problems` maps an
error class to an HTTP status (RFC 9457).
"""
