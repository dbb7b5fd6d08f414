#!/bin/sh
# Every check of the project: lint, format, types and tests. The first call installs what is needed into .venv.
#
#   sh scripts/check.sh                  the unit tests, a few minutes
#   sh scripts/check.sh --integration    the slow end-to-end tests as well
#
# Every check runs, also after one that failed; the exit code is 1 if any did.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

integration=
case ${1-} in
'') ;;
--integration) integration=yes ;;
*)
    echo "error: unknown argument '$1'; usage: sh scripts/check.sh [--integration]" >&2
    exit 2
    ;;
esac

python=$(sh "$root/scripts/setup_env.sh" --dev)
cd "$root"
failed=
check() {
    echo "== $*"
    "$python" -m "$@" || failed="$failed $1"
}

check ruff check .
check ruff format --check .
check mypy
check pytest
[ -z "$integration" ] || check pytest -m integration

if [ -n "$failed" ]; then
    echo "failed:$failed" >&2
    exit 1
fi
echo "all checks passed"
