"""What can be measured, one module each; `bench.run` says in which order."""
