"""Benchmarks beside peers (`make bench`), and the check on a GPU (`make gpu-check`)."""
