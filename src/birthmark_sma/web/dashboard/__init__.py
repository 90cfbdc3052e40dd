"""The operator's dashboard in the browser, with one module for each page.

`session_middleware` loads the session and shows problem documents as pages. `rendering` renders the
templates in `templates/`. `static_files` serves scripts and styles. `routes` registers all routes.
"""
