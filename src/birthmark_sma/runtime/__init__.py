"""Infrastructure of a process: threads, shared memory, log output, private files.

`storage`, `authority`, `web` and `cli` use these modules. They contain nothing about devices,
camera tokens or HTTP routes.
"""
