"""What keeps an outage of the database short: deadlines of calls, and what is tried again.

`storage.engine` and `storage.postgresql_driver` use it; other modules take the times from it.
"""
