#!/usr/bin/env bash
# One run on a Ray cluster, from its head: waits until NODES nodes have joined, then starts, or goes on where the run in
# run_dir was stopped.
#
#   NODES=2 launch/run.sh +experiment=llama3b_intersection run_dir=/shared/runs/first [key=value ...]
#
# RAY_ADDRESS names the cluster (HOST:PORT); unset, the one on this machine. WAIT_S (600): seconds to wait for nodes.
set -euo pipefail
if [[ $# -eq 0 || $1 == -h || $1 == --help ]]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0"
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
exec python -m capo_ray.launch cluster.address="$address" "$@" "${more[@]}"
