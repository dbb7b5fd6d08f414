#!/bin/sh
# Install quantsr into a bare environment, for upscaling only, and use it there.
#
#   sh scripts/check_install.sh                  from this checkout, with the kernels compiled
#   sh scripts/check_install.sh --no-compiler    the same without a compiler: OpenVINO runs the networks
#   sh scripts/check_install.sh FILE             a wheel, without a compiler; or a source distribution (.tar.gz), compiled
#
# Ends with the size of the environment and the seconds that the installation took. Variables:
#   QUANTSR_PYTHON   the Python to make the environment with, 3.10 or newer; default: python3
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
what=$root
engines="native openvino"
compiler=yes
case ${1-} in
'') ;;
--no-compiler) compiler='' engines=openvino ;;
-*)
    echo "error: unknown argument '$1'; usage: sh scripts/check_install.sh [--no-compiler | WHEEL | SDIST]" >&2
    exit 2
    ;;
*)
    [ -f "$1" ] || {
        echo "error: $1: there is no such file" >&2
        exit 2
    }
    what=$(CDPATH='' cd -- "$(dirname -- "$1")" && pwd)/$(basename -- "$1")
    case $what in *.whl) compiler='' ;; esac
    ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
unset VIRTUAL_ENV CONDA_PREFIX PYTHONPATH
"${QUANTSR_PYTHON:-python3}" -m venv "$work/venv"
empty=$(du -sk "$work/venv" | cut -f1)
cd "$work"
if [ -n "$compiler" ]; then
    export QUANTSR_REQUIRE_KERNELS=1
    path=$work/venv/bin:$PATH
else
    # Whatever compilers the machine has, none is in this PATH.
    path=$work/venv/bin
    unset CC
fi
start=$(date +%s)
PATH=$path "$work/venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-cache-dir "$what"
end=$(date +%s)
kib=$(($(du -sk "$work/venv" | cut -f1) - empty))
# shellcheck disable=SC2086  # one word for each engine
PATH=$path "$work/venv/bin/python" "$root/scripts/check_installed.py" $engines
if "$work/venv/bin/python" -c 'import torch' 2>/dev/null; then
    echo "error: upscaling brought torch along" >&2
    exit 1
fi
echo "installed in $((end - start)) s, $((kib / 1024)) MiB: the install check passed"
