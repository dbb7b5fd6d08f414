"""Measurements anyone can repeat: each script interleaves what it compares in one run and writes
benchmarks/results/."""
