"""Networks with random weights that stand in for trained ones in tests and timings. Imports no
torch."""
