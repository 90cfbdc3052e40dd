"""The pages of the dashboard that change the authority.

Each job has one path. GET, and POST without `confirmed`, show what would be done: they change
nothing. POST with `confirmed` does it, and leads to the act in the trail. `performing` has what all
of them share. Their routes require credentials: every act names the access key that did it.
"""
