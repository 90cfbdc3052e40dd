"""What the commands ask of an authority: a Protocol (`interface`), on a database or over HTTP.

`cli/opening.py` opens `local` or `remote`, and a command cannot tell them apart. Both return the
objects of the administration API, which have the members of the command's JSON.
"""
