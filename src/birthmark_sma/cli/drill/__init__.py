"""`sma drill`: rehearse the worst day on a copy of an authority's data.

`command` parses the options, `run` is the course of a drill, and `report` judges it. The authority
itself is only read: everything happens on the copy.
"""
