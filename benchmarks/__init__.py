"""Benchmarks of the data path against its peers: `make bench-loader`. Not collected by pytest."""
