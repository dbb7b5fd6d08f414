"""What users may rely on (docs/reference/stability.md) changes only with a line of the
changelog."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.pages import ROOT
from tests.scripts import load_script

LISTED = ROOT / "tests" / "public_surface.txt"
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def unreleased(changelog: str) -> list[str]:
    """The points of the newest section where it is not released yet, each on one line."""
    title, _, section = re.split(r"^## ", changelog, flags=re.MULTILINE)[1].partition("\n")
    if "unreleased" not in title.lower():
        return []
    return [" ".join(point.split()) for point in re.split(r"^- ", section, flags=re.MULTILINE)[1:]]


def names(entry: str) -> list[str]:
    """What a point of the changelog must contain to name an entry: every word behind the kind, of
    Python names their last part."""
    kind, *words = entry.split(" = ")[0].split()
    return [word.rpartition(".")[2] if kind == "python" else word for word in words]


def is_named(entry: str, points: Sequence[str]) -> bool:
    words = [re.escape(name).replace("<name>", r"[^.\s]+") for name in names(entry)]
    patterns = [rf"(?<![\w-]){word}(?![\w-])" for word in words]
    return any(all(re.search(pattern, point) for pattern in patterns) for point in points)


def unnamed(listed: set[str], current: set[str], points: Sequence[str]) -> list[str]:
    """Entries that were added or removed, and that no point names."""
    changed = [("+", entry) for entry in current - listed] + [("-", entry) for entry in listed - current]
    return sorted(f"{sign} {entry}" for sign, entry in changed if not is_named(entry, points))


def test_only_the_points_of_an_unreleased_section_count() -> None:
    assert unreleased("# C\n\n## Unreleased\n\n- a\n  b\n- c\n\n## 0.1.0 - 2026-01-01\n\n- d\n") == [
        "a b",
        "c",
    ]
    assert unreleased("# C\n\n## 0.2.0 - unreleased\n\n### Added\n\n- a\n") == ["a"]
    assert unreleased("# C\n\n## 0.1.0 - 2026-01-01\n\n- d\n") == []


@pytest.mark.parametrize(
    ("entry", "point", "expected"),
    [
        ("flag quantsr upscale --tile", "`quantsr upscale --tile N` is new.", True),
        ("flag quantsr upscale --tile", "`quantsr upscale --tiles` is new.", False),
        ("flag quantsr upscale --tile", "`quantsr export --tile` is new.", False),
        ("option val.metrics.<name>.better = higher", "`val.metrics.psnr.better` has a default.", True),
        ("option train.ranking = loss", "Blocks are ranked otherwise.", False),
        ("python quantsr.loading.load = name_or_path", "`quantsr.load` takes a path.", True),
    ],
)
def test_a_point_names_an_entry_by_all_of_its_words(entry: str, point: str, expected: bool) -> None:
    assert is_named(entry, [point]) is expected


def test_added_removed_and_changed_entries_need_a_point() -> None:
    listed, current = {"engine a", "engine b", "option k = 1"}, {"engine a", "engine c", "option k = 2"}
    found = ["+ engine c", "+ option k = 2", "- engine b", "- option k = 1"]
    assert unnamed(listed, current, []) == found
    assert unnamed(listed, current, ["The default of `k` is 2."]) == ["+ engine c", "- engine b"]
    assert unnamed(listed, current, ["The default of `k` is 2.", "`c` takes the place of `b`."]) == []


def test_every_change_of_the_public_surface_is_in_the_changelog() -> None:
    pytest.importorskip("torch")
    script = [sys.executable, str(ROOT / "scripts" / "public_surface.py")]  # as tests register names too
    printed = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    missing = unnamed(
        set(LISTED.read_text(encoding="utf-8").splitlines()), set(printed.splitlines()), unreleased(CHANGELOG)
    )
    assert not missing, (
        "the public surface has changed (docs/reference/stability.md): name each of these in the "
        "unreleased section of CHANGELOG.md, '-' what is gone:\n" + "\n".join(missing)
    )


def test_the_list_of_the_last_release_is_the_one_that_the_changelog_notes() -> None:
    """So that the list is not written anew without a line of the changelog."""
    digest = load_script("public_surface").digest(LISTED.read_text(encoding="utf-8"))
    assert f"public surface is `{digest}`" in " ".join(CHANGELOG.split()), (
        f"write 'its public surface is `{digest}`' into the version's section of CHANGELOG.md"
    )
