"""The dashboard: what operators see in a browser. A module a page, and what they share.

`gate` knows who is signed in and turns problems into pages; `pages` draws them, by `templates/`;
`static_files` serves what they load.
"""
