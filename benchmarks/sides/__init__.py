"""The sides of the benchmark, each in a process of its own that waits for its turn."""
