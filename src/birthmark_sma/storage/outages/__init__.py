"""Keep an outage of the database short: deadlines, retries, and the marks of commits.

`storage.engine` and `storage.postgresql_driver` use deadlines, retries and marks, and other modules
take the times of deadlines. `storage.group_commit` writes through `writer_commits`.
"""
