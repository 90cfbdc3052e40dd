"""The pool of a writer: `pool` bounds what may wait, `fair_queue` shares it between callers."""
