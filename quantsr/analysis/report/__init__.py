"""``quantsr report``: several runs in one self-contained HTML file. `document` assembles it;
`runs`, `pictures` and `curves` read the folders of runs; `html` makes the elements."""
