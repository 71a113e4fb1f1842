#!/usr/bin/env bash
# One run on Slurm: Ray on every node of the allocation, the run on the first, all gone at the end.
#
#   sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh +experiment=llama3b_intersection run_dir=/shared/runs/first
#
# From a checkout on shared storage; VENV (.venv) is the environment there. Five minutes before its time is over the run
# is stopped and the job queued again; it goes on from its last checkpoint, so set checkpoint_every.
#SBATCH --job-name=capo_ray
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?this is started with sbatch}"
# shellcheck disable=SC1091  # the environment is not part of the repository
source "${VENV:-.venv}/bin/activate"

mapfile -t names < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
HEAD=${names[0]}
NODES=$SLURM_JOB_NUM_NODES
RAY_PORT=$((20000 + SLURM_JOB_ID % 10000))  # of this job: others may have a Ray on the same nodes
RAY_ADDRESS=$HEAD:$RAY_PORT
export HEAD NODES RAY_PORT RAY_ADDRESS

srun --nodes="$NODES" --ntasks="$NODES" --ntasks-per-node=1 --cpu-bind=none launch/node.sh &
ray=$!
launch/run.sh "$@" &
run=$!
stopped=
trap 'stopped=time; kill -TERM $run 2>/dev/null || true' USR1  # Slurm sends it before the time is over, see --signal
trap 'stopped=cancelled; kill -TERM $run 2>/dev/null || true' TERM
trap 'kill -TERM $run $ray 2>/dev/null || true' EXIT

code=0
wait -n "$run" "$ray" || code=$?
if [[ $stopped ]]; then
    code=0
    wait "$run" || code=$?  # the signal ended the first wait, not the run
    if [[ $stopped == time ]]; then
        echo "slurm.sh: out of time; queued again" >&2
        scontrol requeue "$SLURM_JOB_ID"
    fi
elif ! kill -0 "$ray" 2>/dev/null; then
    echo "slurm.sh: Ray ended before the run; its own lines are above" >&2
    ((code != 0)) || code=1
fi
kill -TERM "$ray" 2>/dev/null || true
wait "$ray" || true
exit "$code"
