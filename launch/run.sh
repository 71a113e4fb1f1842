#!/usr/bin/env bash
# One run on a Ray cluster, from its head: waits until NODES nodes have joined, then starts, or goes on where the run in
# run_dir was stopped.
#
#   NODES=2 launch/run.sh +experiment=llama3b_intersection run_dir=/shared/runs/first [key=value ...]
#   NODES=2 PROGRAM=evaluate launch/run.sh model=/shared/runs/first/policy suite=paper out=/shared/scores
#
# RAY_ADDRESS names the cluster (HOST:PORT); unset, the one on this machine. WAIT_S (600): seconds to wait for nodes.
# PROGRAM (launch): launch or evaluate; the others use no cluster and are started by themselves.
set -euo pipefail
if [[ $# -eq 0 || $1 == -h || $1 == --help ]]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit 2
fi
program=${PROGRAM:-launch}
if [[ ! $program =~ ^(launch|evaluate)$ ]]; then
    echo "run.sh: PROGRAM must be launch or evaluate, got $program" >&2
    exit 2
fi
address=${RAY_ADDRESS:-auto}
more=()
for argument in "$@"; do
    case $argument in
        resume=*) more=() && break ;;
        run_dir=*) [[ -f ${argument#run_dir=}/config.yaml ]] && more=(resume=true) ;;
    esac
done
python "$(dirname "$0")/wait_for_nodes.py" "$address" "${NODES:-1}" "${WAIT_S:-600}"
exec python -m "capo_ray.$program" cluster.address="$address" "$@" "${more[@]}"
