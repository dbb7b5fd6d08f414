"""The command line: exit codes, one-line failures, and modules that are not imported."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import quantsr
from quantsr import cli
from quantsr.deploy.engines import names
from quantsr.errors import InputError, OptionsError, WorkError

HEAVY = {
    "torch",
    "torchvision",
    "basicsr",
    "openvino",
    "onnx",
    "onnxruntime",
    "cv2",
    "numpy",
    "pydantic",
    "matplotlib",
}


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[Callable[[argparse.Namespace], int]], None]]:
    """Installs a function as ``quantsr fake [--size N]``."""
    level = logging.getLogger("quantsr").level

    def install(run: Callable[[argparse.Namespace], int]) -> None:
        module = ModuleType("fake_command")
        module.add_arguments = lambda parser: parser.add_argument("--size", type=int, default=0)  # type: ignore[attr-defined]
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "fake_command", module)
        monkeypatch.setitem(cli.COMMANDS, "fake", cli.Command("fake_command", "do nothing"))

    yield install
    logging.getLogger("quantsr").setLevel(level)


def raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


def importing(name: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        importlib.import_module(name)
        return 0

    return run


def modules_after(statement: str) -> set[str]:
    """Top-level modules in a new interpreter after a statement."""
    code = f"{statement}\nimport sys; print(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not modules_after("import quantsr, quantsr.errors, quantsr.cli") & HEAVY


@pytest.mark.parametrize("words", [[], ["--version"]])
def test_the_help_and_the_version_load_nothing_heavy(words: list[str]) -> None:
    statement = f"import contextlib, io\nfrom quantsr.cli import main\nwith contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main({words})"
    assert not modules_after(statement) & HEAVY


def test_public_names_are_resolved_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(quantsr.__all__) == set(dir(quantsr))
    module = ModuleType("quantsr.loading")
    module.load = "found"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "quantsr.loading", module)
    assert quantsr.load == "found"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = quantsr.nonsense


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_exit_code_is_that_of_the_command(command, code: int) -> None:
    command(lambda args: code)
    assert cli.main(["fake"]) == code


def test_arguments_reach_the_command(command) -> None:
    seen: list[argparse.Namespace] = []
    command(lambda args: seen.append(args) or 0)
    assert cli.main(["fake", "--size", "7"]) == 0
    assert seen[0].size == 7


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (
            InputError("a.yml: no such file; check the name"),
            2,
            ["error: a.yml: no such file; check the name"],
        ),
        (
            OptionsError(["a.yml: x: bad; y", "a.yml: z: bad; w"]),
            2,
            ["error: a.yml: x: bad; y", "error: a.yml: z: bad; w"],
        ),
        (WorkError("the loss is not a number"), 1, ["error: the loss is not a number"]),
        (
            OSError(28, "No space left on device", "out.png"),
            1,
            ["error: [Errno 28] No space left on device: 'out.png'"],
        ),
        (KeyboardInterrupt(), 130, ["error: interrupted"]),
    ],
)
def test_an_expected_failure_prints_its_lines_and_no_traceback(command, capsys, error, code, lines) -> None:
    command(raising(error))
    assert cli.main(["fake"]) == code
    captured = capsys.readouterr()
    assert captured.err.splitlines() == lines
    assert captured.out == ""


@pytest.mark.parametrize("words", [["--debug", "fake"], ["fake", "--debug"]])
def test_debug_shows_the_traceback(command, words: list[str]) -> None:
    command(raising(InputError("a.yml: bad")))
    with pytest.raises(InputError, match="bad"):
        cli.main(words)


def test_an_unexpected_exception_is_not_hidden(command) -> None:
    command(raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["fake"])


def test_a_missing_training_package_names_the_extra(command, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    command(importing("torch"))
    assert cli.main(["fake"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: 'quantsr fake' needs torch;")
    assert 'pip install "quantsr[train]"' in line


def test_a_missing_base_package_names_the_package(command, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    command(importing("openvino"))
    assert cli.main(["fake"]) == 2
    assert "needs openvino; install it with: pip install" in capsys.readouterr().err


def test_a_missing_module_of_quantsr_raises(command) -> None:
    command(importing("quantsr.no_such_module"))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["fake"])


def test_opencv_without_libgl_names_the_remedy(command, capsys) -> None:
    command(raising(ImportError("libGL.so.1: cannot open shared object file: No such file or directory")))
    assert cli.main(["fake"]) == 2
    assert "opencv-python-headless" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fake", "--size", "big"], "invalid int value: 'big'"),
        (["fake", "--sise", "1"], "unrecognized arguments: --sise"),
        (["fakes"], "unknown command 'fakes'"),
    ],
)
def test_bad_usage_is_one_line_and_code_2(command, capsys, words: list[str], message: str) -> None:
    command(lambda args: 0)
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_an_option_file_in_front_needs_no_flag(tmp_path: Path, capsys) -> None:
    file = tmp_path / "absent.yml"
    assert cli.main(["check", "-opt", str(file)]) == cli.main(["check", str(file)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == second
    assert "absent.yml: no such file" in first


def test_no_command_shows_the_help(capsys) -> None:
    assert cli.main([]) == 2
    listing = capsys.readouterr().err
    assert all(f"  {name} " in listing for name in cli.COMMANDS)


def test_a_closed_pipe_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text(
        "def add_arguments(parser): pass\n"
        "def run(args):\n"
        "    for _ in range(100000): print('a line that fills the pipe')\n"
        "    return 0\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from quantsr import cli\n"
        "cli.COMMANDS['long'] = cli.Command('long', 'print')\n"
        "sys.exit(cli.main(['long']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        messages = process.stderr.read()
    assert process.returncode == 0
    assert messages == b""


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_a_help(name: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: quantsr {name}" in capsys.readouterr().out


def test_only_train_starts_several_processes(tmp_path: Path, repo_root: Path) -> None:
    """NPROC starts torchrun in train.sh only: N tests would write the same files."""
    (tmp_path / "scripts").mkdir()
    for name in ("train.sh", "test.sh", "scripts/run.sh"):
        shutil.copy(repo_root / name, tmp_path / name)
    (tmp_path / "scripts" / "setup_env.sh").write_text("echo echo\n")  # instead of the interpreter
    for name, several in (("train", True), ("test", False)):
        words = ["env", "NPROC=4", "sh", str(tmp_path / f"{name}.sh"), "x.yml"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert done.stdout.endswith(f"-m quantsr {name} -opt x.yml\n")
        assert ("torch.distributed.run" in done.stdout) == several


def test_a_test_under_torchrun_is_refused(capsys, monkeypatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["test", "-opt", "x.yml"]) == 2
    assert "evaluates in one process" in capsys.readouterr().err


def test_python_m_quantsr_runs_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "quantsr", "--version"], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert re.fullmatch(rf"quantsr {re.escape(quantsr.__version__)}( \(commit [0-9a-f]{{7,}}\))?", first)
    assert second == f"engines: {', '.join(names.installed())}"


def test_a_path_that_may_not_be_looked_at_is_bad_input(command, capsys) -> None:
    command(raising(PermissionError(13, "Permission denied", "secret/x")))
    assert cli.main(["fake"]) == 2
    assert capsys.readouterr().err == (
        "error: secret/x: Permission denied; correct the path, or its permissions\n"
    )


def test_threads_are_set_up_before_a_command_imports_torch(
    command: Callable[[Callable[[argparse.Namespace], int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(cli.cpu, "share_cores", lambda: seen.append("shared"))
    original = cli.import_module
    monkeypatch.setattr(cli, "import_module", lambda name: seen.append(name) or original(name))
    command(lambda args: 0)
    assert cli.main(["fake"]) == 0
    assert list(dict.fromkeys(seen)) == ["shared", "fake_command"]
