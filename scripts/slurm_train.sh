#!/bin/sh
#SBATCH --job-name=quantsr
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
# Train under Slurm, one task for each GPU. Call it from the checkout, after `sh scripts/setup_env.sh` on the login node
# (the jobs only use that environment); options of sbatch on the command line override those above:
#
#   sbatch --nodes=2 --time=24:00:00 scripts/slurm_train.sh options/train/X.yml --auto-resume
#
# The first machine is found from the job's node list; MASTER_PORT (default 29500) must be free there.
set -eu
# sbatch runs a copy of this file, so the checkout is the directory from which the job was submitted.
root=${SLURM_SUBMIT_DIR:-$PWD}
if [ ! -f "$root/scripts/setup_env.sh" ]; then
    echo "error: $root is not the checkout of quantsr; submit the job from there" >&2
    exit 2
fi
case ${1-} in
*.yml | *.yaml) ;;
*)
    echo "error: name an option file; usage: sbatch scripts/slurm_train.sh X.yml [ARGS]" >&2
    exit 2
    ;;
esac
case ${MASTER_PORT:-29500} in
*[!0-9]* | ??????* | 0*)
    echo "error: MASTER_PORT: a port is needed, not '$MASTER_PORT'; correct the variable, or unset it" >&2
    exit 2
    ;;
esac

cd "$root"
python=$(sh scripts/setup_env.sh)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
option_file=$1
shift
exec srun --kill-on-bad-exit=1 "$python" -m quantsr train -opt "$option_file" --launcher slurm "$@"
