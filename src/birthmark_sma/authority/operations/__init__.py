"""Operations for operators: backup, restore, statistics, and health checks (`sma doctor`).

The command line and the dashboard call these modules. Nothing here validates tokens or issues
certificates.
"""
