"""What a packed file holds, reading and writing it. Imports no torch."""
