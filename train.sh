#!/bin/sh
# Train a network. The first call installs what is needed into .venv (see scripts/setup_env.sh).
#
#   sh train.sh                                   the default run: a small QuantSR-C x2 W4A4 on datasets/mini
#   sh train.sh options/train/X.yml [ARGS]        another option file; ARGS are those of 'quantsr train'
#   sh train.sh --set train.total_iter=100        the default run with changed options
#   NPROC=4 sh train.sh options/train/X.yml       on 4 GPUs (or processes) of this machine
#
# Paths inside option files are relative to this folder; that of the option file itself to where you are, or to this folder.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
. "$root/scripts/run.sh"
run_quantsr train "$root/options/train/QuantSR_C/mini_w4a4_x2.yml" "$@"
