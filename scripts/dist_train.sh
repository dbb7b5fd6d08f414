#!/bin/sh
# Train on several machines with torchrun: start this on each of them, with the same arguments except NODE_RANK.
#
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first-host sh scripts/dist_train.sh options/train/X.yml [ARGS of 'quantsr train']
#
# Variables:
#   NNODES        machines, default 1
#   NODE_RANK     rank of this machine, 0 .. NNODES-1, default 0
#   NPROC         processes on each machine, default: one per GPU, or 1 where there is none
#   MASTER_ADDR   address of the first machine, default 127.0.0.1
#   MASTER_PORT   a free port on it, default 29500
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
. "$root/scripts/run.sh"

case ${1-} in
*.yml | *.yaml) ;;
*)
    echo "error: name an option file; usage: NNODES=2 NODE_RANK=0 MASTER_ADDR=host sh scripts/dist_train.sh X.yml [ARGS]" >&2
    exit 2
    ;;
esac
number NNODES "${NNODES:-1}" 1 10000
number NODE_RANK "${NODE_RANK:-0}" 0 $((${NNODES:-1} - 1))
number NPROC "${NPROC:-1}" 1 1024
number MASTER_PORT "${MASTER_PORT:-29500}" 1 65535
if [ "${NNODES:-1}" -gt 1 ] && [ -z "${MASTER_ADDR-}" ]; then
    echo "error: MASTER_ADDR: name the first machine; every machine must be able to reach it" >&2
    exit 2
fi
case ${MASTER_ADDR-} in
-* | *[!A-Za-z0-9.:_-]*)
    echo "error: MASTER_ADDR: the name or address of a machine is needed, not '$MASTER_ADDR'" >&2
    exit 2
    ;;
esac

option_file=$(absolute "$1")
shift
enter_checkout
if [ -z "${NPROC-}" ]; then
    NPROC=$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')
fi
exec "$python" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$NPROC" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${MASTER_PORT:-29500}" \
    -m quantsr train -opt "$option_file" "$@"
