"""What the commands ask of an authority: a Protocol, on the database (`local`) or over HTTP (`remote`).

`cli/opening.py` chooses one of both, and a command cannot tell them apart. Both return the objects
of `views`, which have the members of the command's JSON.
"""
