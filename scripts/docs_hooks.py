"""Hooks of MkDocs: pages that lie outside of docs/, and links that leave it.

Links in docs/ are those of the checkout, so that they work in a file browser and on a code host. On
the site, pages of the checkout that lie elsewhere (model cards, the changelog, ...) appear under
project/, and links to anything else of the checkout become plain text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "*/README.md", "quantsr/zoo/*.md")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s#]+)(#[^()\s]*)?\)")


def outside_pages() -> dict[str, str]:
    """Pages outside of docs/: path in the checkout to path on the site."""
    found = [path for pattern in OUTSIDE for path in sorted(ROOT.glob(pattern))]
    paths = [path.relative_to(ROOT).as_posix() for path in found]
    return {path: f"project/{path}" for path in paths if not path.startswith(("docs/", "tests/", "."))}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages outside of docs/."""
    from mkdocs.structure.files import File  # links are tested without MkDocs

    for path, uri in outside_pages().items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links of the checkout into links of the site."""
    return site_links(markdown, page.file.src_uri)


def site_links(markdown: str, uri: str) -> str:
    """``markdown`` of the page ``uri`` of the site, with links of the site."""
    pages = outside_pages()
    source = next((path for path, other in pages.items() if other == uri), f"docs/{uri}")

    def link(match: re.Match[str]) -> str:
        mark, text, target, part = match.groups()
        if "://" in target or target.startswith("mailto:"):
            return match.group(0)
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path == "README.md":
            path = "docs/index.md"
        if path.startswith("docs/"):
            other = path.removeprefix("docs/")
        elif path in pages:
            other = pages[path]
        else:
            return text if (ROOT / path).exists() else match.group(0)
        return f"{mark}[{text}]({posixpath.relpath(other, posixpath.dirname(uri) or '.')}{part or ''})"

    return LINK.sub(link, markdown)
