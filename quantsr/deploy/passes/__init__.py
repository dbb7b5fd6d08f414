"""From a network's program to the folded program that engines run, pass by pass. Imports no
torch."""
