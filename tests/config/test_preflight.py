"""Problems that `quantsr check` reports by the code of the commands themselves, and values of
`--set`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from quantsr.cli import main
from quantsr.config import Options
from quantsr.data.loader import build_train_loader

Lines = Callable[..., list[str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pictures(folder: str, *names: str, size: tuple[int, int] = (60, 50)) -> None:
    Path(folder).mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", size).save(Path(folder) / name)


@pytest.fixture
def check(valid: dict[str, Any], here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """A function from ``--set`` words to the errors of `quantsr check`, or to its summary."""
    del valid["path"]
    Path("opt.yml").write_text(yaml.safe_dump(valid), encoding="utf-8")

    def run(*words: str) -> list[str]:
        code = main(["check", "-opt", "opt.yml", *(["--set", *words] if words else [])])
        captured = capsys.readouterr()
        errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert code == (2 if errors else 0)
        return [line.split(": ", 2)[2] for line in errors] or captured.out.splitlines()

    return run


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("set #1", "set #1"), ("#1", "#1"), ("a: b", None), ("'set #1'", "set #1"), ("---", "---"), ("- x", "- x"),
        ("&a x", "&a x"), ("|", "|"), (" x  y ", "x  y"), ("caf\u00e9", "caf\u00e9"), ("a\nb", "a\nb"),
        ("'a' #b", None), ("[a] #b", None), ("3 #4", "3 #4"),
    ],
)  # fmt: skip
def test_text_is_used_as_typed(
    load: Callable[..., Options], problems: Lines, valid: dict[str, Any], typed: str, value: str | None
) -> None:
    """Or it is refused; no part of it is dropped."""
    if value is None:
        assert len(problems(valid, f"val.suffix={typed}")) == 1
    else:
        options = load(valid, f"val.suffix={typed}")
        assert options.val is not None
        assert options.val.suffix == value


def test_numbers_lists_and_nulls_are_parsed(load: Callable[..., Options], valid: dict[str, Any]) -> None:
    options = load(
        valid, "train.total_iter=1e3", "val.depths=[4, 2]", "network_g.nbits_w= 2", "val.baseline=no"
    )
    assert options.train is not None
    assert options.val is not None
    assert (options.train.total_iter, options.val.depths, options.val.baseline) == (1000, [4, 2], False)
    assert options.network_g.kwargs["nbits_w"] == 2
    assert load(valid, "val.suffix=null").val.suffix is None  # type: ignore[union-attr]


def test_a_name_that_is_no_text_is_refused(problems: Lines, valid: dict[str, Any]) -> None:
    (line,) = problems(valid, "name=caf\udce9")
    assert "special characters are not allowed" in line


@pytest.mark.parametrize("key", ["num_in_ch", "num_out_ch"])
def test_networks_of_other_channels_are_refused(problems: Lines, valid: dict[str, Any], key: str) -> None:
    (line,) = problems(valid, f"network_g.{key}=1")
    assert line.startswith(f"--set: network_g.{key}: must be 3, got 1")


def test_lists_are_read_as_training_reads_them(check: Any, here: Path) -> None:
    pictures("pictures", "p0.png", "a b.png", "plain name.png")
    Path("list.txt").write_bytes(
        b"\xef\xbb\xbfp0.png (50,60,3)\r\na b.png (50, 60, 3) 1\r\n\r\nplain name.png\r\n"
    )
    assert any("3 pictures" in line for line in check("datasets.train.meta_info_file=list.txt"))
    Path("list.txt").write_text("p0_s001.png (50,60,3)\n")
    (line,) = check("datasets.train.meta_info_file=list.txt")
    assert "p0_s001.png, which is not there" in line


def test_basicsrs_data_set_gets_the_same_list(here: Path) -> None:
    pictures("gt", "a b.png")
    pictures("lq", "a bx2.PNG", size=(30, 25))
    Path("list.txt").write_bytes(b"\xef\xbb\xbfa b.png (50,60,3)\r\n")
    options = {"type": "PairedImageDataset", "dataroot_gt": "gt", "dataroot_lq": "lq", "gt_size": 48,
               "meta_info_file": "list.txt", "filename_tmpl": "{}x2", "use_hflip": False, "use_rot": False}  # fmt: skip
    assert next(build_train_loader(options, 2, 0, 1))["lq"].shape == (1, 3, 24, 24)


def test_broken_links_are_named_and_not_counted(
    check: Any, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures("pictures", "a.png", "b.JPG")
    Path("pictures/c.png").symlink_to("/nowhere/c.png")
    assert any("2 pictures" in line for line in check())
    assert "c.png: a link to a file that is not there; left out" in caplog.text


def test_lr_pictures_are_found_with_suffixes_of_any_case_and_must_fit(check: Any, here: Path) -> None:
    pictures("pictures", "a.png")
    pictures("lq", "a.PNG", size=(30, 25))
    assert check("datasets.train.dataroot_lq=lq")[0] == "opt.yml: no problems"
    pictures("lq", "a.PNG", size=(15, 25))
    (line,) = check("datasets.train.dataroot_lq=lq")
    assert line.startswith("lq/a.PNG: 15x25 is not the x2 LR of a.png (60x50)")


def test_crops_must_fit_into_a_picture(check: Any, here: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures("pictures", "small.png", size=(40, 40))
    assert check() == ["pictures: no picture is at least 48x48; lower gt_size or use larger pictures"]
    pictures("pictures", "a.png")
    assert check()[0] == "opt.yml: no problems"
    assert "small.png: smaller than gt_size 48; skipped" in caplog.text


def test_pictures_too_small_for_a_metric_are_named(
    check: Any, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures("pictures", "a.png")
    pictures("v", "good.png")
    pictures("v", "tiny.png", size=(4, 4))
    new = "datasets.val={name: v, type: PairedImageDataset, dataroot_gt: v}"
    assert check(new)[0] == "opt.yml: no problems"
    assert "v: tiny: left out of the validation" in caplog.text


def test_checkpoints_of_other_networks_are_reported(check: Any, here: Path) -> None:
    pictures("pictures", "a.png")
    torch.save({"params": {"weight": torch.zeros(1)}}, "other.pth")
    (line,) = check("path.pretrain_network_g=other.pth")
    assert line.startswith("other.pth: not a checkpoint of this QuantSR_C")
    (line,) = check("path.resume_state=other.pth")
    assert line.startswith("other.pth: not a training state")
