#!/bin/sh
# Every check of the project: lint, format (Python and C), types and tests. The first call installs what is needed into .venv.
#
#   sh scripts/check.sh                  the unit tests, a few minutes
#   sh scripts/check.sh --integration    the slow end-to-end tests as well
#   sh scripts/check.sh --lint           only lint, format and types
#   sh scripts/check.sh --gpu            only the tests that need CUDA; fails where there is no device
#   sh scripts/check.sh --stress         only the long randomized runs: kills, damaged and bad files, hostile arguments, bad file systems
#
# A stress test runs until its time budget ends and prints its seed. Variables:
#   QUANTSR_STRESS_SECONDS   time budget of each stress test, default 60
#   QUANTSR_TEST_JOBS        processes that run the unit tests, 0: this one alone; default: one for each core, at most 4
#   QUANTSR_STRESS_SEED      seed of all of them, default: drawn anew in each run; set it to repeat a run
#
# Every check runs, also after one that failed; the exit code is 1 if any did.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

tier=unit
case ${1-} in
'') ;;
--lint | --integration | --gpu | --stress) tier=${1#--} ;;
*)
    echo "error: unknown argument '$1'; usage: sh scripts/check.sh [--lint | --integration | --gpu | --stress]" >&2
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

check_c_format() {
    echo "== clang-format --dry-run"
    "$python" -c 'from clang_format import clang_format; clang_format()' --dry-run --Werror \
        quantsr/deploy/native/*.[ch] quantsr/deploy/native/*.inc || failed="$failed clang-format"
}

# Side by side, with one thread each; whoever is ready takes tests from the others.
check_units() {
    jobs=${QUANTSR_TEST_JOBS-}
    [ -n "$jobs" ] || case $(getconf _NPROCESSORS_ONLN) in 1) jobs=0 ;; 2 | 3) jobs=2 ;; *) jobs=4 ;; esac
    echo "== pytest -n $jobs --dist worksteal"
    OMP_NUM_THREADS=1 "$python" -m pytest -n "$jobs" --dist worksteal || failed="$failed pytest"
}

if [ "$tier" = stress ]; then
    check pytest -m stress -rP --show-capture=stdout tests/stress
elif [ "$tier" = gpu ]; then
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
        echo "error: torch finds no CUDA device; every test would be skipped" >&2
        exit 1
    }
    check pytest -m gpu
else
    check ruff check .
    check ruff format --check .
    check_c_format
    check mypy
    [ "$tier" = lint ] || check_units
    [ "$tier" != integration ] || check pytest -m integration
fi

if [ -n "$failed" ]; then
    echo "failed:$failed" >&2
    exit 1
fi
echo "all checks passed"
