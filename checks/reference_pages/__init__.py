"""Write the parts of docs/ that are made from the code: `python -m checks.reference_pages`.

Each part stands between two marks of a page, or is a file of its own. A test compares them with the
code, so a page can never contradict it.
"""
