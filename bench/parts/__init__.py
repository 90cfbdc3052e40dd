"""The parts of a benchmark run, one module each. `bench.run` calls them in order."""
