"""Print the section of CHANGELOG.md for a release.

    python scripts/release_notes.py v0.2.0

Ends with exit code 2 where there is no such section, or where its heading has no date yet.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CHANGELOG = Path(__file__).resolve().parents[1] / "CHANGELOG.md"


def notes(tag: str, text: str) -> str:
    """The section "## X.Y.Z - YYYY-MM-DD" of the text for the tag vX.Y.Z, without its heading.

    Raises:
        ValueError: a tag of another form, no section, or one without a date.
    """
    if not re.fullmatch(r"v\d+\.\d+\.\d+", tag):
        raise ValueError(f"{tag}: is not a tag of a release, such as v0.2.0")
    sections = re.split(r"^## (.+)$", text, flags=re.M)
    for heading, body in zip(sections[1::2], sections[2::2], strict=True):
        version, _, date = heading.partition(" - ")
        if version == tag[1:]:
            if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", date):
                raise ValueError(f"CHANGELOG.md: '## {heading}' needs its date: '## {version} - YYYY-MM-DD'")
            return body.strip() + "\n"
    raise ValueError(f"CHANGELOG.md: has no section for {tag[1:]}; write '## {tag[1:]} - YYYY-MM-DD'")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/release_notes.py vX.Y.Z")
    try:
        sys.stdout.write(notes(sys.argv[1], CHANGELOG.read_text(encoding="utf-8")))
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
