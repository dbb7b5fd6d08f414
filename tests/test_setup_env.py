"""The installation scripts, run on a copy of the checkout with fake interpreters."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [
    "train.sh",
    "test.sh",
    *(f"scripts/{path.name}" for path in sorted((ROOT / "scripts").glob("*.sh"))),
]
NATIVE = "quantsr/deploy/native"
TOOLS = ["sh", "cat", "cksum", "cp", "dirname", "flock", "grep", "head", "mkdir", "mv", "rm"]

# Answers the scripts' queries, and logs every installation and every run.
FAKE_PYTHON = """#!/bin/sh
log() {{ printf '%s\\n' "$*" >>"$FAKE_LOG"; }}
case "$1 $2" in
*version_info*) echo {version} ;;
*ensurepip*) exit {without_venv} ;;
*find_spec*) [ -n "{installed}" ] ;;
"-c import cv2") [ -z "${{FAKE_NO_LIBGL-}}" ] ;;
"-m venv")
    log "venv {version}"
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    ;;
"-m pip")
    shift 4
    log "pip $*"
    case "$*" in *"${{FAKE_PIP_FAILS:-nothing}}"*) exit 1 ;; esac
    ;;
"-m "*)
    shift
    log "in $(pwd): $*"
    [ "$1" != "${{FAKE_FAILS-}}" ]
    ;;
esac
"""


class Machine:
    """A checkout, and a PATH with the tools of a minimal system and the given interpreters."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "a check out"
        self.bin = folder / "bin"
        self.home = folder / "home"
        self.log = folder / "log"
        for path in (self.checkout / "scripts", self.bin, self.home):
            path.mkdir(parents=True)
        (self.checkout / NATIVE).mkdir(parents=True)
        native = [f"{NATIVE}/{p.name}" for p in (ROOT / NATIVE).iterdir() if p.suffix in (".c", ".h", ".inc")]
        for name in (*SCRIPTS, "requirements.txt", "pyproject.toml", "setup.py", *native):
            shutil.copy(ROOT / name, self.checkout / name)
        for tool in TOOLS:
            found = shutil.which(tool)
            if found:
                (self.bin / tool).symlink_to(found)

    def add_python(
        self, name: str, version: str, *, without_venv: bool = False, installed: bool = False
    ) -> Path:
        """Put an interpreter into PATH, or at an absolute path."""
        path = self.bin / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            FAKE_PYTHON.format(
                version=version, without_venv=int(without_venv), installed="yes" if installed else ""
            )
        )
        path.chmod(0o755)
        return path

    def run(
        self, script: str, *words: str, cwd: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.bin), "HOME": str(self.home), "FAKE_LOG": str(self.log), **variables}
        return subprocess.run(
            [str(self.bin / "sh"), str(self.checkout / script), *words],
            env=environment,
            cwd=cwd or self.home,
            capture_output=True,
            text=True,
            check=False,
        )

    def setup(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run("scripts/setup_env.sh", *words, **variables)

    def logged(self) -> list[str]:
        """The lines of the log (installations and runs) since the last call."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines

    @property
    def venv(self) -> Path:
        return self.checkout / ".venv"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def ready(machine: Machine) -> Machine:
    """A machine with an installed environment."""
    machine.add_python("python3.11", "3.11")
    assert machine.setup().returncode == 0
    machine.logged()
    return machine


def test_the_first_call_installs_and_prints_the_interpreter(machine: Machine) -> None:
    machine.add_python("python3.11", "3.11")
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{machine.venv}/bin/python\n"
    assert machine.logged() == [
        "venv 3.11",
        "pip install --quiet --upgrade pip setuptools>=77.0.3,<82 setuptools-scm>=8.1 wheel",
        "pip install --no-build-isolation -r requirements.txt",
        "pip install -qq --no-build-isolation --editable .",
    ]


def test_the_second_call_installs_nothing(ready: Machine) -> None:
    done = ready.setup()
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{ready.venv}/bin/python\n", "")
    assert ready.logged() == []


def test_the_newest_suitable_interpreter_is_used(machine: Machine) -> None:
    for name, version in {
        "python3": "3.13",
        "python3.10": "3.10",
        "python3.12": "3.12",
        "python": "2.7",
    }.items():
        machine.add_python(name, version)
    machine.setup()
    assert machine.logged()[0] == "venv 3.12"


def test_the_version_of_an_interpreter_without_one_in_its_name_is_read(machine: Machine) -> None:
    machine.add_python("python3.12", "")  # as pyenv's shim of a version that is not selected
    machine.add_python("python3", "3.10")
    machine.setup()
    assert machine.logged()[0] == "venv 3.10"


@pytest.mark.parametrize(
    "folder", [".pyenv/versions/3.12.1/bin", ".local/share/uv/python/cpython-3.12.1-x/bin"]
)
def test_interpreters_outside_path_are_found(machine: Machine, folder: str) -> None:
    machine.add_python("python3", "3.13")
    machine.add_python(str(machine.home / folder / "python3"), "3.12")
    machine.setup()
    assert machine.logged()[0] == "venv 3.12"


@pytest.mark.parametrize("versions", [[], ["3.9", "3.13"]])
def test_without_a_suitable_interpreter_the_message_names_what_to_install(
    machine: Machine, versions: list[str]
) -> None:
    for version in versions:
        machine.add_python(f"python{version}", version)
        machine.add_python("python3", version)
    done = machine.setup()
    if any(Path("/usr/local/bin").glob("python3.1[012]")):
        pytest.skip("this machine has a suitable Python in a folder that is always searched")
    assert done.returncode == 1
    assert done.stdout == ""
    for words in ("Python 3.10, 3.11 or 3.12", "apt-get install python3", "QUANTSR_PYTHON="):
        assert words in done.stderr
    assert not machine.venv.exists()


def test_a_python_without_venv_names_the_package(machine: Machine) -> None:
    machine.add_python("python3", "3.11", without_venv=True)
    done = machine.setup()
    if any(Path("/usr/local/bin").glob("python3.1[012]")):
        pytest.skip("this machine has a suitable Python in a folder that is always searched")
    assert done.returncode == 1
    assert "apt-get install python3.11-venv" in done.stderr


def test_a_named_interpreter_is_used(machine: Machine) -> None:
    machine.add_python("python3.12", "3.12")
    named = machine.add_python(str(machine.home / "my python"), "3.10")
    machine.setup(QUANTSR_PYTHON=str(named))
    assert machine.logged()[0] == "venv 3.10"


@pytest.mark.parametrize(
    ("name", "message"), [("python3.13", "must be a Python 3.10"), ("nothing", "there is no 'nothing'")]
)
def test_a_named_interpreter_must_be_suitable(machine: Machine, name: str, message: str) -> None:
    machine.add_python("python3.12", "3.12")
    machine.add_python("python3.13", "3.13")
    done = machine.setup(QUANTSR_PYTHON=name)
    assert done.returncode == 1
    assert "QUANTSR_PYTHON" in done.stderr
    assert message in done.stderr
    assert machine.logged() == []


@pytest.mark.parametrize(
    "changed", ["requirements.txt", "setup.py", *(f"{NATIVE}/{name}" for name in ("network.h", "swin.inc"))]
)
def test_a_changed_source_file_updates_the_environment(ready: Machine, changed: str) -> None:
    """The kernels are compiled by the installation: without a new one, old kernels would be used
    after a git pull."""
    (ready.venv / "mine").touch()
    with (ready.checkout / changed).open("a") as file:
        file.write("\n")
    assert ready.setup().returncode == 0
    assert {
        "pip install --no-build-isolation -r requirements.txt",
        "pip install -qq --no-build-isolation --editable .",
    } <= set(ready.logged())
    assert (ready.venv / "mine").exists()
    ready.setup()
    assert ready.logged() == []


def test_an_interrupted_installation_is_made_again(machine: Machine) -> None:
    machine.add_python("python3.11", "3.11")
    assert machine.setup(FAKE_PIP_FAILS="requirements.txt").returncode == 1
    (machine.venv / "half a package").touch()
    machine.logged()
    done = machine.setup()
    assert done.returncode == 0
    assert "was cut off" in done.stderr
    assert not (machine.venv / "half a package").exists()
    assert machine.logged()[0] == "venv 3.11"


def test_nothing_runs_where_the_installation_failed(machine: Machine) -> None:
    machine.add_python("python3.11", "3.11")
    done = machine.run("train.sh", FAKE_PIP_FAILS="requirements.txt")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("quantsr: the installation failed")
    assert not runs(machine)


def test_an_existing_environment_is_kept(machine: Machine) -> None:
    machine.add_python("python3.11", "3.11")
    machine.add_python(str(machine.venv / "bin" / "python"), "3.10")
    (machine.venv / "mine").touch()
    assert machine.setup().returncode == 0
    assert (machine.venv / "mine").exists()
    assert machine.logged()[0].startswith("pip")


def test_a_folder_that_is_no_environment_is_reported_and_kept(machine: Machine) -> None:
    machine.add_python("python3.11", "3.11")
    machine.venv.mkdir()
    done = machine.setup()
    assert done.returncode == 1
    assert "remove it" in done.stderr
    assert machine.venv.exists()


def test_the_tools_of_the_checks_are_installed_on_demand_and_kept(ready: Machine) -> None:
    assert ready.setup("--dev").returncode == 0
    assert "pip install -qq --no-build-isolation --editable .[dev]" in ready.logged()
    ready.setup("--dev")
    ready.setup()
    assert ready.logged() == []


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_active_environment_that_has_everything_is_used(machine: Machine, variable: str) -> None:
    machine.add_python("python3.11", "3.11")
    prefix = machine.home / "an environment"
    active = machine.add_python(str(prefix / "bin" / "python"), "3.11", installed=True)
    done = machine.setup(**{variable: str(prefix)})
    assert done.stdout == f"{active}\n"
    assert machine.logged() == []
    assert not machine.venv.exists()


def test_a_named_folder_overrides_the_active_environment(machine: Machine) -> None:
    machine.add_python("python3.11", "3.11", installed=True)
    machine.add_python("python3", "3.11", installed=True)
    other = machine.home / "other"
    done = machine.setup(QUANTSR_VENV=str(other))
    assert done.stdout == f"{other}/bin/python\n"
    assert machine.logged()[0] == "venv 3.11"


def test_torch_and_torchvision_are_installed_together_from_a_named_index(machine: Machine) -> None:
    machine.add_python("python3.11", "3.11")
    machine.setup(QUANTSR_TORCH_INDEX="https://index.example/cpu")
    (line,) = [line for line in machine.logged() if "--index-url" in line]
    assert line == "pip install --index-url https://index.example/cpu torch>=2.9 torchvision>=0.24"


def test_without_libgl_the_headless_opencv_is_installed(machine: Machine) -> None:
    machine.add_python("python3.11", "3.11")
    machine.setup(FAKE_NO_LIBGL="yes")
    assert "pip install --quiet --force-reinstall --no-deps opencv-python-headless" in machine.logged()


def runs(machine: Machine) -> list[str]:
    return [line for line in machine.logged() if line.startswith("in ")]


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ([], "-opt {root}/options/train/QuantSR_C/mini_w4a4_x2.yml"),
        (["--set", "a.b=1"], "-opt {root}/options/train/QuantSR_C/mini_w4a4_x2.yml --set a.b=1"),
        (["options/x.yml"], "-opt options/x.yml"),
        (["mine.yml", "--auto-resume"], "-opt {here}/mine.yml --auto-resume"),
        (["--auto-resume", "-opt", "mine.yml"], "--auto-resume -opt {here}/mine.yml"),
        (["-opt=mine.yml"], "-opt={here}/mine.yml"),
        (["--help"], "--help"),
    ],
)
def test_train_runs_the_command_in_the_checkout(
    ready: Machine, tmp_path: Path, words: list[str], command: str
) -> None:
    here = tmp_path / "some where"
    here.mkdir()
    (here / "mine.yml").touch()
    done = ready.run("train.sh", *words, cwd=here)
    assert done.returncode == 0, done.stderr
    expected = command.format(root=ready.checkout, here=here)
    assert runs(ready) == [f"in {ready.checkout}: quantsr train {expected}"]


def test_several_processes_start_through_torchrun(ready: Machine) -> None:
    ready.run("train.sh", "x.yml", NPROC="4")
    (line,) = runs(ready)
    assert "torch.distributed.run --standalone --nproc_per_node=4 -m quantsr train -opt x.yml" in line


@pytest.mark.parametrize("value", ["two", "0", "-1", "1.5", "2 ", "4; touch x", "9999999", "1025"])
def test_a_bad_number_of_processes_starts_nothing(ready: Machine, value: str) -> None:
    done = ready.run("train.sh", "x.yml", NPROC=value)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: NPROC: a whole number from 1 to 1024 is needed, not '{value}'; correct the variable, or unset it"
    ]
    assert runs(ready) == []
    assert ready.run("test.sh", NPROC=value).returncode == 0  # tests run in one process and ignore it


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"NPROC": "all"}, "NPROC"),
        ({"NNODES": "1:4"}, "NNODES"),
        ({"NNODES": "0"}, "NNODES"),
        ({"NODE_RANK": "1"}, "NODE_RANK"),
        ({"NNODES": "2", "NODE_RANK": "2"}, "NODE_RANK"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT"),
        ({"MASTER_ADDR": "--help"}, "MASTER_ADDR"),
        ({"MASTER_ADDR": "$(touch x)"}, "MASTER_ADDR"),
    ],
)
def test_variables_of_several_machines_are_checked_first(
    ready: Machine, variables: dict[str, str], named: str
) -> None:
    done = ready.run("scripts/dist_train.sh", "x.yml", **{"MASTER_ADDR": "a", **variables})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {named}: ")
    assert runs(ready) == []


def test_test_uses_a_shipped_network_by_default(ready: Machine) -> None:
    default = f"quantsr test -opt {ready.checkout}/options/test/shipped.yml"
    for words, typed in (
        ((), default),
        (("--set", "path.pretrain_network_g=run"), f"{default} --set path.pretrain_network_g=run"),
        (("mine.yml",), "quantsr test -opt mine.yml"),
    ):
        ready.log.unlink(missing_ok=True)
        ready.run("test.sh", *words)
        assert runs(ready) == [f"in {ready.checkout}: {typed}"]


def test_every_check_runs_even_after_a_failed_one(ready: Machine) -> None:
    done = ready.run("scripts/check.sh", "--integration", FAKE_FAILS="ruff", QUANTSR_TEST_JOBS="3")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "failed: ruff ruff"
    assert [line.partition(": ")[2] for line in runs(ready)] == [
        "ruff check .",
        "ruff format --check .",
        "mypy",
        "pytest -n 3 --dist worksteal",
        "pytest -m integration",
    ]


def test_the_stress_tier_runs_alone(ready: Machine) -> None:
    done = ready.run("scripts/check.sh", "--stress")
    assert done.returncode == 0, done.stderr
    assert [line.partition(": ")[2] for line in runs(ready)] == [
        "pytest -m stress -rP --show-capture=stdout tests/stress"
    ]
    done = ready.run("scripts/check.sh", "--all")
    assert done.returncode == 2
    assert "--stress" in done.stderr


def test_several_machines_need_the_address_of_the_first(ready: Machine) -> None:
    done = ready.run("scripts/dist_train.sh", "x.yml", NNODES="2")
    assert done.returncode == 2
    assert "MASTER_ADDR" in done.stderr
    done = ready.run(
        "scripts/dist_train.sh",
        "x.yml",
        "--auto-resume",
        NNODES="2",
        NODE_RANK="1",
        MASTER_ADDR="a",
        NPROC="8",
    )
    assert done.returncode == 0, done.stderr
    (line,) = runs(ready)
    assert "--nnodes=2 --node_rank=1 --nproc_per_node=8 --master_addr=a --master_port=29500" in line
    assert line.endswith("-m quantsr train -opt x.yml --auto-resume")


def test_slurm_runs_the_command_through_srun(ready: Machine) -> None:
    srun = ready.bin / "srun"
    srun.write_text('#!/bin/sh\necho "srun $*"\n')
    srun.chmod(0o755)
    spool = ready.home / "slurm_script"  # sbatch runs a copy
    shutil.copy(ready.checkout / "scripts/slurm_train.sh", spool)
    done = subprocess.run(
        [str(ready.bin / "sh"), str(spool), "x.yml"],
        env={"PATH": str(ready.bin), "SLURM_SUBMIT_DIR": str(ready.checkout), "FAKE_LOG": str(ready.log)},
        cwd=ready.home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = f"srun --kill-on-bad-exit=1 {ready.checkout}/.venv/bin/python -m quantsr train -opt x.yml --launcher slurm\n"
    assert done.stdout == expected


@pytest.mark.parametrize("shell", ["sh", "dash", "bash"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_parses_in_every_shell(shell: str, script: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on this machine")
    subprocess.run([shell, "-n", str(ROOT / script)], check=True)


@pytest.mark.parametrize("script", [*SCRIPTS, ".ci/run"])
def test_shellcheck_finds_nothing(script: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck on this machine")
    done = subprocess.run(["shellcheck", "-x", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def lines_of(path: Path) -> set[str]:
    return {line for line in path.read_text().splitlines() if line and not line.startswith("#")}


@pytest.fixture(scope="module")
def project() -> dict[str, Callable[..., object]]:
    """The table [project] of pyproject.toml."""
    try:
        import tomllib
    except ImportError:  # Python 3.10, where pytest brings it
        import tomli as tomllib
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_requirements_and_metadata_agree(project) -> None:
    listed = {*project["dependencies"], *project["optional-dependencies"]["train"]}
    assert {line.partition(";")[0] for line in listed} == lines_of(ROOT / "requirements.txt")


def test_upscaling_alone_needs_neither_torch_nor_basicsr(project) -> None:
    assert not any(line.startswith(("torch", "basicsr", "pydantic")) for line in project["dependencies"])
