"""Benchmarks: each script times its contenders interleaved in one run, and writes to
benchmarks/results/."""
