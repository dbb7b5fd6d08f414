#!/bin/sh
# Find or make a Python environment that can run quantsr, and print the path of its interpreter on standard output.
#
#   sh scripts/setup_env.sh          what training, testing and upscaling need
#   sh scripts/setup_env.sh --dev    the tools of scripts/check.sh as well
#
# An active environment that has quantsr is used unchanged. Otherwise .venv beside train.sh is made once; a later call
# finds its marker file, and neither uses the network nor changes the environment. An interrupted installation is made again.
#
# Variables:
#   QUANTSR_PYTHON       the Python 3.10-3.12 to make the environment with
#   QUANTSR_VENV         the folder of the environment, instead of .venv; an active environment is then ignored
#   QUANTSR_TORCH_INDEX  the package index for torch and torchvision,
#                        e.g. https://download.pytorch.org/whl/cpu for the CPU-only builds
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=${QUANTSR_VENV:-$root/.venv}
marker=$venv/.quantsr-setup

say() { printf '%s\n' "quantsr: $*" >&2; }
fail() {
    say "$@"
    exit 1
}

dev=
case ${1-} in
'') ;;
--dev) dev=yes ;;
*) fail "unknown argument '$1'; usage: sh scripts/setup_env.sh [--dev]" ;;
esac

# --- an active environment that has everything -----------------------------------------------------------------------

# Run outside of the checkout, whose folder quantsr/ would be taken for an installed package.
has_everything() {
    modules="quantsr torch torchvision basicsr cv2 lmdb openvino onnx onnxruntime pydantic safetensors tensorboard yaml"
    [ -z "$dev" ] || modules="$modules pytest xdist hypothesis ruff mypy clang_format"
    (cd / && "$1" -c '
import importlib.util, sys
sys.exit(any(importlib.util.find_spec(name) is None for name in sys.argv[1].split()))' "$modules") >/dev/null 2>&1
}

if [ -z "${QUANTSR_VENV-}${QUANTSR_PYTHON-}" ]; then
    for name in ${VIRTUAL_ENV:+"$VIRTUAL_ENV/bin/python"} ${CONDA_PREFIX:+"$CONDA_PREFIX/bin/python"} python3 python; do
        active=$(command -v "$name" 2>/dev/null) || continue
        if has_everything "$active"; then
            printf '%s\n' "$active"
            exit 0
        fi
    done
fi

# --- our own environment ---------------------------------------------------------------------------------------------

# A checksum of the files from which the environment is made, the native engine's sources included; where it has changed,
# the environment is updated.
wanted() {
    {
        cat "$root/requirements.txt" "$root/pyproject.toml" "$root/setup.py" "$root"/quantsr/deploy/native/*.[ch] \
            "$root"/quantsr/deploy/native/*.inc && printf '%s\n' "${QUANTSR_TORCH_INDEX-}" "$root"
    } | cksum
}

# The marker's first line is "started" or the checksum; a second line "dev" means that the tools are installed too.
marker_says() { [ -f "$marker" ] && head -n 1 "$marker"; }
is_current() {
    [ "$(marker_says)" = "$(wanted)" ] || return 1
    [ -z "$dev" ] || grep -qx dev "$marker" || return 1
    "$venv/bin/python" -c '' >/dev/null 2>&1
}

use_it() {
    printf '%s\n' "$venv/bin/python"
    exit 0
}

if is_current; then use_it; fi

# One installation at a time; a second call waits here, and then finds a current environment.
if command -v flock >/dev/null 2>&1; then
    exec 9<"$0"
    flock 9 || true
    if is_current; then use_it; fi
fi

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
is_suitable() {
    case $(version_of "$1") in
    3.10 | 3.11 | 3.12) ;;
    *) return 1 ;;
    esac
    if "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; then return 0; fi
    without_venv=$1
    return 1
}

# Prints nothing; sets $python to the first suitable interpreter, else to nothing.
find_python() {
    python=
    if [ -n "${QUANTSR_PYTHON-}" ]; then
        python=$(command -v "$QUANTSR_PYTHON") || fail "QUANTSR_PYTHON: there is no '$QUANTSR_PYTHON'"
        is_suitable "$python" ||
            fail "QUANTSR_PYTHON: '$python' must be a Python 3.10, 3.11 or 3.12 with venv, and is $(version_of "$python" || echo no Python)"
        return
    fi
    for name in python3.12 python3.11 python3.10 python3 python \
        "${PYENV_ROOT:-${HOME-}/.pyenv}"/versions/3.1[012]*/bin/python3 \
        "${HOME-}"/.local/share/uv/python/cpython-3.1[012].*/bin/python3 \
        /usr/local/bin/python3.1[012] /opt/homebrew/bin/python3.1[012]; do
        python=$(command -v "$name" 2>/dev/null) || continue
        if is_suitable "$python"; then return; fi
    done
    python=
}

without_venv=
find_python
if [ -z "$python" ]; then
    if [ -n "$without_venv" ]; then
        fail "$without_venv has no venv module; install it, e.g.: apt-get install python$(version_of "$without_venv")-venv"
    fi
    fail "Python 3.10, 3.11 or 3.12 is needed (BasicSR cannot be built on 3.13), and none was found.
Install one, e.g.: apt-get install python3 python3-venv | dnf install python3.12 | brew install python@3.12 | pyenv install 3.12
or name one that is not in PATH: QUANTSR_PYTHON=/path/to/python3.12"
fi

if [ "$(marker_says)" = started ]; then
    say "an earlier installation in $venv was cut off; making it anew"
    rm -rf "$venv"
fi
if [ -d "$venv" ]; then
    is_suitable "$venv/bin/python" ||
        fail "$venv exists but holds no working Python 3.10-3.12; remove it, or name another folder in QUANTSR_VENV"
else
    say "making $venv with $python ($(version_of "$python"))"
    "$python" -m venv "$venv" >&2
fi
printf 'started\n' >"$marker"

# All output goes to stderr: standard output has only the path of the interpreter.
pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@" >&2 ||
        fail "the installation failed; the lines above say why. It needs a Python package index, and starts anew at the next call"
}

say "installing the packages (once; about 6 GB with the CUDA builds of torch)"
cd "$root"
pip install --quiet --upgrade pip 'setuptools>=77.0.3,<82' 'setuptools-scm>=8.1' wheel
if [ -n "${QUANTSR_TORCH_INDEX-}" ]; then
    # In one command, so that the two builds match.
    # shellcheck disable=SC2046  # one word per requirement
    pip install --index-url "$QUANTSR_TORCH_INDEX" $(grep -E '^torch(vision)?[^a-z]' requirements.txt)
fi
# Without isolation, because basicsr has torch as a build requirement: pip would download a second one.
BASICSR_EXT=False pip install --no-build-isolation -r requirements.txt
say "installing quantsr itself, whose engine is compiled: about a minute of processor time"
pip install -qq --no-build-isolation --editable ".${dev:+[dev]}"

# basicsr requires the OpenCV with windows, which needs libGL; without libGL it is replaced by the headless one.
if ! "$venv/bin/python" -c 'import cv2' >/dev/null 2>&1; then
    say "this machine has no libGL; putting the headless OpenCV in place"
    pip install --quiet --force-reinstall --no-deps opencv-python-headless
fi
if ! "$venv/bin/python" -c 'import cv2, torch, torchvision, onnxruntime, openvino, quantsr.basicsr_compat' >&2; then
    fail "the installation in $venv does not work; the lines above say why"
fi

{ wanted && if [ -n "$dev" ]; then echo dev; fi; } >"$marker.new"
mv "$marker.new" "$marker"
say "installed; the line '. $venv/bin/activate' makes the command 'quantsr' available in a terminal"
use_it
