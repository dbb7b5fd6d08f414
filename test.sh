#!/bin/sh
# Evaluate a network. The first call installs what is needed into .venv (see scripts/setup_env.sh).
#
#   sh test.sh                                    the newest default run of train.sh
#   sh test.sh options/test/X.yml [ARGS]          an option file; ARGS are those of 'quantsr test'
#
# Paths inside option files are relative to this folder; that of the option file itself to where you are, or to this folder.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
. "$root/scripts/run.sh"

if [ $# -eq 0 ]; then
    newest=
    for checkpoint in "$root"/experiments/mini_w4a4_x2*/models/net_g_latest.pth; do
        [ -f "$checkpoint" ] || continue
        # shellcheck disable=SC3013  # -nt: dash, bash, ksh and busybox have it
        if [ -z "$newest" ] || [ "$checkpoint" -nt "$newest" ]; then newest=$checkpoint; fi
    done
    if [ -z "$newest" ]; then
        echo "error: there is no default run in $root/experiments yet; make one with: sh train.sh" >&2
        exit 2
    fi
    echo "evaluating $newest" >&2
    set -- --set "path.pretrain_network_g=${newest#"$root/"}"
fi
run_quantsr test "$root/options/test/QuantSR_C/mini_w4a4_x2.yml" "$@"
