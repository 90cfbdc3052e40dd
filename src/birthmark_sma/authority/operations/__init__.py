"""Operations for operators: backup, restore, statistics, and health checks (`sma doctor`).

The command line, the dashboard, `/stats` and `/metrics` call these modules. Nothing here validates
tokens or issues certificates.
"""
