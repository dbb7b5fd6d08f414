#!/bin/sh
# Evaluate a network. The first call installs what is needed into .venv (see scripts/setup_env.sh).
#
#   sh test.sh                                    the network that comes with quantsr, on the pictures at hand
#   sh test.sh --set path.pretrain_network_g=X    another one: a checkpoint, a packed file or the name of a run
#   sh test.sh options/test/X.yml [ARGS]          an option file; ARGS are those of 'quantsr test'
#
# Paths inside option files are relative to this folder; that of the option file itself to where you are, or to this folder.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
. "$root/scripts/run.sh"
run_quantsr test "$root/options/test/shipped.yml" "$@"
