#!/bin/sh
# Test with the lowest versions that pyproject.toml allows, in a separate environment.
#
#   sh scripts/check_floors.sh [ARGS of pytest]            those of `dependencies`; the tests of upscaling and of the command line
#   sh scripts/check_floors.sh --train [ARGS of pytest]    those of the extra `train` as well; the tests of training, data and options too
#
# Other packages that the tests import (pytest, ...) are imported from the environment of scripts/check.sh. Variables:
#   QUANTSR_FLOORS_VENV   folder of the environment, default .venv-floors; made again where a lowest version has changed
#   QUANTSR_TORCH_INDEX   with --train: the package index for the lowest torch and torchvision, see scripts/setup_env.sh;
#                         without it those of the environment of scripts/check.sh are used, which are large
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
extra=
if [ "${1-}" = --train ]; then
    extra=train
    shift
fi
python=$(sh "$root/scripts/setup_env.sh" --dev)
cd "$root"
venv=${QUANTSR_FLOORS_VENV:-$root/.venv-floors}

pins_of() {
    "$python" - "$1" <<'P'
import re
import sys

text = open("pyproject.toml", encoding="utf-8").read()
block = re.search(rf"^{sys.argv[1]} = \[(.*?)^\]", text, re.M | re.S)[1]
lines = re.findall(r'^  "([^"]*)"', block, re.M)
floors = [re.match(r"([\w-]+)([>=]=)([\w.]+)", line) for line in lines]
assert all(floors), f"a requirement without a lowest version in {lines}"
# an exact version, and that of the build tool, are what every environment has
chosen = [match for match in floors if match[2] == ">=" and match[1] != "setuptools"]
print(" ".join(f"{match[1]}=={match[3]}" for match in chosen))
P
}
pins=$(pins_of dependencies)
torch_pins=
for pin in ${extra:+$(pins_of "$extra")}; do
    case $pin in
    torch==* | torchvision==*) torch_pins="$torch_pins${torch_pins:+ }$pin" ;;
    *) pins="$pins $pin" ;;
    esac
done
if [ -n "$torch_pins" ] && [ -z "${QUANTSR_TORCH_INDEX-}" ]; then
    echo "== not $torch_pins, which need QUANTSR_TORCH_INDEX"
    torch_pins=
fi
echo "== $pins${torch_pins:+ $torch_pins}"
if [ "$(cat "$venv/.pins" 2>/dev/null || :)" != "$pins $torch_pins" ]; then
    rm -rf "$venv"
    "$python" -m venv "$venv"
    # shellcheck disable=SC2086 # one word for each pin
    "$venv/bin/python" -m pip install -q --disable-pip-version-check $pins
    # shellcheck disable=SC2086
    [ -z "$torch_pins" ] || "$venv/bin/python" -m pip install -q --disable-pip-version-check --index-url "$QUANTSR_TORCH_INDEX" $torch_pins
    # After its own packages, those of the other environment are importable.
    "$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' >"$("$venv/bin/python" -c \
        'import sysconfig; print(sysconfig.get_paths()["purelib"])')/others.pth"
    printf '%s' "$pins $torch_pins" >"$venv/.pins"
fi
[ $# -gt 0 ] || set -- tests/upscale tests/test_cli.py ${extra:+tests/config tests/data tests/engine tests/quant tests/analysis}
exec "$venv/bin/python" -m pytest "$@"
