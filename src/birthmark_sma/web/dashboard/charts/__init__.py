"""The charts of verdicts on the dashboard's pages, and the time that they show."""
