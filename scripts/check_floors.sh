#!/bin/sh
# Test upscaling with the lowest versions that pyproject.toml allows, in a separate environment.
#
#   sh scripts/check_floors.sh [ARGS of pytest]     default: the tests of upscaling and of the command line
#
# The lowest versions of `dependencies` are installed. Other packages that the tests import (torch, pytest, ...) are imported from the
# environment of scripts/check.sh. Variables:
#   QUANTSR_FLOORS_VENV   folder of the environment, default .venv-floors; made again where a lowest version has changed
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=$(sh "$root/scripts/setup_env.sh" --dev)
cd "$root"
venv=${QUANTSR_FLOORS_VENV:-$root/.venv-floors}

pins=$("$python" - <<'P'
import re

text = open("pyproject.toml", encoding="utf-8").read()
block = re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S)[1]
floors = re.findall(r'"([\w-]+)>=([\w.]+)"', block)
assert len(floors) == len(re.findall(r'^  "', block, re.M)), "a dependency without a floor"
print(" ".join(f"{name}=={version}" for name, version in floors))
P
)
echo "== $pins"
if [ "$(cat "$venv/.pins" 2>/dev/null || :)" != "$pins" ]; then
    rm -rf "$venv"
    "$python" -m venv "$venv"
    # shellcheck disable=SC2086 # one word for each pin
    "$venv/bin/python" -m pip install -q --disable-pip-version-check $pins
    # After its own packages, those of the other environment are importable.
    "$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' >"$("$venv/bin/python" -c \
        'import sysconfig; print(sysconfig.get_paths()["purelib"])')/others.pth"
    printf '%s' "$pins" >"$venv/.pins"
fi
[ $# -gt 0 ] || set -- tests/upscale tests/test_cli.py
exec "$venv/bin/python" -m pytest "$@"
