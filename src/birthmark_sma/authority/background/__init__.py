"""Background tasks of a server: retention, abuse detection, reloading keys, checking the clock.

`authority.py` starts each in a thread of its own (`runtime.background_task`). Every server process
runs all of them, so each task must tolerate that another process does the same work at once. No
task may hold a lock for long, because validations would wait for it.
"""
