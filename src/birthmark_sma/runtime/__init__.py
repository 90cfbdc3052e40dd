"""What a process needs to run, whatever it runs: threads, memory, logs, private files.

Used by storage, authority, web and cli. Nothing here knows of devices, tokens or HTTP routes.
"""
