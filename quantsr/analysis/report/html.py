"""The HTML elements of the page. All text from runs is escaped here by `html.escape`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from quantsr.analysis.report.pictures import FULL_ERROR, Scene, data_uri

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


def table(caption: str, cells: Sequence[Sequence[str]], left: int = 1, *, drawn: bool = False) -> str:
    """A table whose first row is the header; the first ``left`` columns are left-aligned, the
    others are numbers.

    ``drawn``: the cells of the last column are HTML. The page's script makes headers sort the rows.
    """
    head = "".join(f'<th scope="col"{_side(i, left)}>{escape(cell)}</th>' for i, cell in enumerate(cells[0]))
    lines = []
    for line in cells[1:]:
        first = f'<th scope="row">{escape(line[0])}</th>'
        last = len(line) - 1 if drawn else len(line)
        rest = "".join(
            f"<td{_side(i, left)}>{cell if i == last else escape(cell)}</td>"
            for i, cell in enumerate(line[1:], start=1)
        )
        lines.append(f"<tr>{first}{rest}</tr>")
    body = "\n".join(lines)
    return (
        f'<div class="scroll" tabindex="0"><table><caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n"
    )


def _side(column: int, left: int) -> str:
    return "" if column < left else ' class="number"'


def folded(title: str, body: str) -> str:
    """HTML that is shown when its title is opened."""
    return f"<details><summary>{escape(title)}</summary>\n{body}</details>\n"


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
        f'<div class="controls">{choices[0]}{slider}{choices[1]}</div>{_errors(shown, name)}</figure>\n'
    )


def _errors(shown: Scene, name: str) -> str:
    """The error maps of a scene, side by side."""
    _, _, height, width = shown.box
    maps = "".join(
        f'<div class="error"><img src="{data_uri(picture)}" width="{width}" height="{height}" '
        f'alt="{escape(f"{name}: error of {label}")}"><span>{escape(label)}</span></div>\n'
        for label, picture in shown.errors
    )
    title = f"Where they differ from the ground truth (black: equal, white: {FULL_ERROR} of 255 and more)"
    return folded(title, f'<div class="errors">{maps}</div>\n') if maps else ""


def _select(identity: str, label: str, shown: Scene, chosen: int) -> str:
    options = "".join(
        f"<option{' selected' if index == chosen else ''}>{escape(name)}</option>"
        for index, (name, _) in enumerate(shown.versions)
    )
    return f'<label for="{identity}">{label}<select id="{identity}">{options}</select></label>'
