"""Background tasks of a server: retention, abuse detection, reloading keys, checking the clock.

`authority.py` starts each in a thread of its own (`runtime.background_task`), together with the
tasks of other folders: `ca.crl_publication` and `key_tables.usage`. `sandbox_expiry` runs in a
sandbox only. Every server process runs its tasks, so each task must tolerate that another process
does the same work at once. No task may hold a lock for long, because validations would wait for it.
"""
