"""The HTML elements of the page. All text from runs is escaped here by `html.escape`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from quantsr.analysis.report.pictures import Scene, data_uri

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content security policy of the page: it loads nothing from outside."""


def page(title: str, about: str, sections: Sequence[tuple[str, str]]) -> str:
    """A whole page of titled sections; ``about`` and the titles are text, the sections' bodies
    HTML."""
    here = files(__package__)
    style, script = (here.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    body = "".join(f"<section><h2>{escape(name)}</h2>\n{text}</section>\n" for name, text in sections if text)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p>{escape(about)}</p>\n{body}<script>\n{script}</script>\n</body>\n</html>\n"
    )


def table(caption: str, cells: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table whose first row is the header; the first ``left`` columns are left-aligned, the
    others are numbers."""
    head = "".join(f'<th scope="col"{_side(i, left)}>{escape(cell)}</th>' for i, cell in enumerate(cells[0]))
    lines = []
    for line in cells[1:]:
        first = f'<th scope="row">{escape(line[0])}</th>'
        rest = "".join(f"<td{_side(i, left)}>{escape(cell)}</td>" for i, cell in enumerate(line[1:], start=1))
        lines.append(f"<tr>{first}{rest}</tr>")
    body = "\n".join(lines)
    return (
        f'<div class="scroll" tabindex="0"><table><caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n"
    )


def _side(column: int, left: int) -> str:
    return "" if column < left else ' class="number"'


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>\n"


def bullets(items: Sequence[tuple[str, str]]) -> str:
    """A list of names with their descriptions."""
    lines = "".join(f"<li><code>{escape(name)}</code>: {escape(text)}</li>" for name, text in items)
    return f'<ul class="about">{lines}</ul>\n'


def scene(shown: Scene, number: int) -> str:
    """One picture with its versions: a slider between two of them, or all side by side without
    JavaScript."""
    name = f"{shown.set} / {shown.name}"
    top, left, height, width = shown.box
    where = f"x{shown.scale}, {width}x{height} pixels at column {left}, row {top}"
    versions = "".join(
        f'<div class="version"><img src="{data_uri(crop)}" width="{width}" height="{height}" draggable="false" '
        f'alt="{escape(f"{name}: {label}")}"><span>{escape(label)}</span></div>\n'
        for label, crop in shown.versions
    )
    last = len(shown.versions) - 1
    # At first, bicubic beside the network at its full depth.
    choices = [
        _select(f"{side}{number}", label, shown, chosen)
        for side, label, chosen in (
            ("left", "left", 0),
            ("right", "right", min(1, last)),
        )
    ]
    slider = f'<label for="range{number}">divider<input type="range" id="range{number}" min="0" max="100" value="50"></label>'
    return (
        f'<figure class="scene"><figcaption>{escape(name)} <small>{where}</small></figcaption>\n'
        f'<div class="stage">{versions}<div class="divider"></div></div>\n'
        f'<div class="controls">{choices[0]}{slider}{choices[1]}</div></figure>\n'
    )


def _select(identity: str, label: str, shown: Scene, chosen: int) -> str:
    options = "".join(
        f"<option{' selected' if index == chosen else ''}>{escape(name)}</option>"
        for index, (name, _) in enumerate(shown.versions)
    )
    return f'<label for="{identity}">{label}<select id="{identity}">{options}</select></label>'
