"""Former names of option files go on working."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import yaml

from quantsr.config import load_options
from quantsr.config.layers import read_layers
from quantsr.errors import InputError
from tests.config.former_options import HASHES
from tests.pages import PAGES

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ROOT / "options"
MOVED = yaml.safe_load((OPTIONS / "moved.yml").read_text(encoding="utf-8"))


def load(file: str, *changes: str):
    is_train = file.startswith("train/")
    return load_options(str(OPTIONS / file), changes, is_train=is_train, check_paths=False)


@pytest.mark.parametrize("former", HASHES)
def test_a_former_file_and_the_one_that_replaced_it_have_the_former_options(former: str) -> None:
    assert not (OPTIONS / former).exists()
    file, *words = MOVED[former].split()
    assert load(file, *words[1:]).config_hash() == HASHES[former]
    assert load(former).config_hash() == HASHES[former]
    changes = [word for word in words[1:] if not word.startswith("name=")]
    assert load(file, *changes).name == load(former).name


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(("network", "teacher"), [("c", "teacher"), ("t", "teacher_swinir")])
def test_an_own_file_may_inherit_the_former_bases(
    network: str, teacher: str, scale: int, tmp_path: Path
) -> None:
    if (network, scale) == ("t", 3):
        return  # there was none
    sets = {"train": ["recipe", f"div2k_x{scale}", f"{teacher}_x{scale}"], "test": [f"benchmark_x{scale}"]}
    for kind, bases in sets.items():
        name = f"QuantSR_{network.upper()}_w2a2_x{scale}"
        former = f"{kind}/QuantSR_{network.upper()}/w2a2_x{scale}{'_teacher' if kind == 'train' else ''}.yml"
        own = {
            "_base_": [str(OPTIONS / "_base_" / f"{base}.yml") for base in (f"quantsr_{network}", *bases)],
            "name": name + ("_teacher" if kind == "train" else ""),
            "network_g": {"nbits_w": 2, "nbits_a": 2},
        }
        if kind == "test":
            own["path"] = {"pretrain_network_g": f"experiments/{name}/models/net_g_latest.pth"}
        (tmp_path / "own.yml").write_text(yaml.safe_dump(own))
        options = load_options(str(tmp_path / "own.yml"), is_train=kind == "train", check_paths=False)
        assert options.config_hash() == HASHES[former]


def test_the_list_names_every_former_file_once_and_files_that_exist() -> None:
    assert set(HASHES) == {name for name in MOVED if not name.startswith("_base_/")}
    assert {name for name in MOVED if (OPTIONS / name).exists()} == set()
    assert all((OPTIONS / entry.split()[0]).is_file() for entry in MOVED.values())


def test_a_former_name_is_answered_with_the_present_one(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load("train/QuantSR_T/float_x2.yml")
    assert [record.getMessage() for record in caplog.records] == [
        f"{OPTIONS}/train/QuantSR_T/float_x2.yml is now: {OPTIONS}/train/QuantSR_T/float.yml "
        "--set name=QuantSR_T_float_x2 scale=2"
    ]


def test_changes_of_the_command_line_win(caplog: pytest.LogCaptureFixture) -> None:
    options = load("train/QuantSR_C/w2a2_x2.yml", "network_g.nbits_w=5")
    assert (options.network_g.kwargs["nbits_w"], options.network_g.kwargs["nbits_a"]) == (5, 2)
    assert options.name == "QuantSR_C_w2a2_x2"


def test_lists_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "moved.yml").write_text(
        "a/b/gone.yml: a/b/absent.yml\na/b/round.yml: a/b/round.yml\na/b/wrong.yml: a.yml scale=2\na/c.yml: a/d.yml\n"
    )
    for name, message in {
        "gone": r"absent\.yml: no such file",
        "round": "runs in a circle",
        "wrong": r"moved\.yml: 'a\.yml scale=2' is not understood; write 'FILE\.yml --set KEY=VALUE'",
        "other": r"other\.yml: no such file",
    }.items():
        with pytest.raises(InputError, match=message):
            read_layers(str(tmp_path / "a" / "b" / f"{name}.yml"))
    (tmp_path / "a" / "d.yml").write_text("scale: 3\n")
    assert read_layers(str(tmp_path / "a" / "c.yml"))[0] == {"scale": 3}


def test_no_page_and_no_option_file_uses_a_former_name() -> None:
    for path in PAGES:
        named = re.findall(
            r"(?:train|test)/QuantSR_\w/\w+\.yml|_base_/\w+\.yml", path.read_text(encoding="utf-8")
        )
        assert not set(named) & set(MOVED), path
    for path in OPTIONS.glob("**/*.yml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for section in (content, content.get("base", {})):
            bases = section.get("_base_", []) if isinstance(section, dict) else section
            for base in [bases] if isinstance(bases, str) else bases:
                assert (path.parent / base).is_file(), (path, base)
