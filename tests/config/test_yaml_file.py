"""Reading YAML: data only, and one line for each error."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from quantsr.config.layers import read_layers
from quantsr.config.yaml_file import parse_yaml, read_yaml
from quantsr.errors import InputError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2E+3", 2000.0),
        ("255.", 255.0),
        (".5", 0.5),
        ("-1.5e2", -150.0),
        ("!!float 5e3", 5000.0),
        ("500_000", 500000),
        ("010", 10),
        ("-1", -1),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("x4", "x4"),
        ("'4'", "4"),
        ("e5", "e5"),
        ("~", None),
        ("null", None),
        ("true", True),
        ("off", False),
        ("[32, 16, 8]", [32, 16, 8]),
        ("{a: {b: [1, {c: 2}]}}", {"a": {"b": [1, {"c": 2}]}}),
        ("{1: a, true: b, 2.5: c}", {"1": "a", "true": "b", "2.5": "c"}),
        ("", None),
    ],
)
def test_values(text: str, value: Any) -> None:
    parsed = parse_yaml(text, "here")
    assert parsed == value
    assert type(parsed) is type(value)


def test_infinity_and_not_a_number() -> None:
    assert parse_yaml("-.inf", "here") == -math.inf
    assert math.isnan(parse_yaml(".nan", "here"))


def test_anchors_and_merge_keys() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [{x: 5}, *a], z: 0}\n"
    assert parse_yaml(text, "here") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"x": 5, "y": 2, "z": 0},
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: key 'a' is given twice; remove one"),
        ("s:\n  k: 1\n  k: 2\n", "line 3: key 'k' is given twice"),
        ("a: [1, 2\nb: 3\n", "line 2: "),
        ("a:\n\t- b\n", "line 2: "),
        ("a: 1\n b: 2\n", "line 2: "),
        (
            "a: !!python/object/apply:os.system ['echo']\n",
            "line 1: tag !!python/object/apply:os.system is not allowed",
        ),
        ("a: !!python/name:os.system\n", "line 1: tag !!python/name:os.system is not allowed"),
        ("a: !local {b: 1}\n", "line 1: tag !local is not allowed"),
        ("a: !!binary aGk=\n", "line 1: tag !!binary is not allowed"),
        ("a: !!float fast\n", "line 1: 'fast' is no float"),
        ("a: !!int 5e3\n", "line 1: '5e3' is no int"),
        ("? [a, b]\n: 1\n", "line 1: a key must be a word"),
        ("a: &x [*x]\n", "line 1: an alias that contains itself"),
        ("a: *nobody\n", "line 1: found undefined alias"),
        ("a: 1\n--- \nb: 2\n", "line 2: expected a single document"),
        ("a: \x07\n", "special characters are not allowed"),
        ("[" * 1500, "line 1: nested more than 32 levels deep"),
        ("\n".join(" " * i + "a:" for i in range(40)), "line 32: nested more than 32 levels deep"),
        (
            "a0: &a0 [1]\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 40)),
            "nested more than 32",
        ),
        ("\n".join(f"k{i}: {i}" for i in range(12_000)), "more than 20,000 keys and values"),
    ],
)
def test_errors_are_one_line_with_file_and_line(text: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_yaml(text, "opt.yml")
    message = str(caught.value)
    assert message.startswith("opt.yml: ")
    assert expected in message
    assert "\n" not in message


def test_aliases_cannot_fill_the_memory() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(InputError, match="aliases included; write fewer"):
        parse_yaml("\n".join(lines), "bomb.yml")


def test_a_merge_can_have_thousands_of_sources() -> None:
    sections = ", ".join(f"{{k{i}: 1}}" for i in range(4000))
    assert len(parse_yaml(f"a: {{<<: [{sections}]}}", "here")["a"]) == 4000


def test_the_number_of_inherited_files_is_limited(tmp_path: Path) -> None:
    """Each file names the next one many times: few lines, and thousands of reads."""
    for i in range(4):
        (tmp_path / f"f{i}.yml").write_text(f"_base_: [{', '.join([f'f{i + 1}.yml'] * 30)}]")
    (tmp_path / "f4.yml").write_text("name: x")
    with pytest.raises(InputError, match=r"is one of more than 100 files under _base_; name fewer"):
        read_layers(str(tmp_path / "f0.yml"))


def test_the_values_of_all_inherited_files_are_limited_together(tmp_path: Path) -> None:
    (tmp_path / "many.yml").write_text("a: [" + "1, " * 5000 + "1]")
    (tmp_path / "top.yml").write_text(f"_base_: [{', '.join(['many.yml'] * 4)}]\nname: x")
    with pytest.raises(InputError, match="more than 20,000 keys and values, files under _base_"):
        read_layers(str(tmp_path / "top.yml"))


def test_a_huge_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / "huge.yml").open("wb") as file:
        file.truncate(2**36)
    with pytest.raises(InputError, match="more than 1,048,576 characters"):
        read_yaml(str(tmp_path / "huge.yml"))
    with pytest.raises(InputError, match="more than 1,048,576 characters"):
        read_yaml("/dev/zero")


def test_no_tag_runs_code(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with pytest.raises(InputError):
        parse_yaml(
            f"a: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{trace}']]",
            "x",
        )
    assert not trace.exists()


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "train.yml").write_text("a: 1")
    (tmp_path / "empty.yml").write_text("# nothing\n")
    (tmp_path / "list.yml").write_text("- a\n")
    (tmp_path / "latin.yml").write_bytes(b"a: \xe4\n")
    cases = {
        "trian.yml": "no such file; did you mean",
        "empty.yml": "is empty",
        "list.yml": "holds no keys",
        "latin.yml": "not UTF-8",
        "": "is a folder",
    }
    for name, expected in cases.items():
        with pytest.raises(InputError, match=expected):
            read_yaml(str(tmp_path / name))
    with pytest.raises(InputError, match="there is no folder"):
        read_yaml(str(tmp_path / "absent" / "train.yml"))
