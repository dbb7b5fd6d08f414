"""Checks the built site: ``python scripts/check_site.py site``.

Every link inside the site leads to a file and, with a ``#``, to an element of it; and no page loads
anything from another host. Exit code 1 with one line for each problem.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"img": "src", "script": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
"""Elements that a browser loads by itself, and a stylesheet, icon or preload of ``link``."""


class Page(HTMLParser):
    """Links, loaded addresses and ids of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("canonical", "alternate", "next", "prev"):
            self.loaded.append(values.get("href", ""))
        elif tag in LOADED and LOADED[tag] in values:
            self.loaded.append(values[LOADED[tag]])


def problems(site: Path) -> Iterator[str]:
    """One line for each problem of the built site."""
    site = site.resolve()
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site}: no pages; build it with mkdocs first"
    for path, page in pages.items():
        name = path.relative_to(site)
        for address in [*page.links, *page.loaded]:
            url = urlsplit(address)
            if url.scheme or url.netloc:
                if address in page.loaded and url.scheme != "data":
                    yield f"{name}: loads {address} from another host"
                continue
            if name.name == "404.html":  # its addresses start at the site's root, wherever that is
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            target = target / "index.html" if target.is_dir() else target
            known = pages.get(target)
            if not target.is_file():
                yield f"{name}: no file for {address}"
            elif url.fragment and known and unquote(url.fragment) not in known.ids:
                yield f"{name}: no element for {address}"
    for style in sorted(site.rglob("*.css")):
        for address in re.findall(r"url\([\"']?((?:https?:)?//[^)\"']+)", style.read_text(encoding="utf-8")):
            yield f"{style.relative_to(site)}: loads {address} from another host"


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        sys.stderr.write("error: give the folder of the built site; see the head of this file\n")
        return 2
    found = list(problems(Path(argv[0])))
    sys.stderr.write("".join(f"error: {line}\n" for line in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
