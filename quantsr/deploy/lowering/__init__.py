"""From a torch module to its program: the network runs once on references to values (`traced`,
`functions`), its layers record themselves (`layers`), `rewrite` makes a program of the record."""
