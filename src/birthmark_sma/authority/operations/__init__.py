"""What operators run: backup, restore, statistics, and the doctor.

Called by the command line and the dashboard.
"""
