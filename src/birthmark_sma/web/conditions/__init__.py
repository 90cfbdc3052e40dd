"""The conditions under which an operator should act: the alert rules, evaluated by the server.

`table` names them, `samples` keeps the metrics of the last minutes, `watch` evaluates.
"""
