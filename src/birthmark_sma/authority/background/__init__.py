"""Tasks that run beside a server: retention, abuse detection, reloading keys, checking clocks.

Started by authority.py, each in a thread of its own (runtime/background_task.py).
"""
