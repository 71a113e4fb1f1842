#!/usr/bin/env bash
# Submit a run to a Ray cluster as a job and follow its log.
#
#   launch/submit.sh +experiment=llama3b_intersection run_dir=/shared/runs/first [key=value ...]
#
# RAY_ADDRESS names the cluster's dashboard (http://127.0.0.1:8265 when unset); RUN_DIR must be on storage that every
# node sees. The cluster's nodes need the environment of requirements/gpu.lock; this checkout is sent along.
# Ends with the job's exit code. Ctrl-C stops following, not the job: `ray job stop ID` does that.
set -euo pipefail
if [[ $# -eq 0 || $1 == -h || $1 == --help ]]; then
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 2
fi
cd "$(dirname "$0")/.."
address=${RAY_ADDRESS:-http://127.0.0.1:8265}
exec ray job submit --address "$address" \
    --runtime-env-json '{"working_dir": ".", "excludes": [".venv", ".git", "runs", "tests"]}' \
    -- python -m capo_ray.launch cluster.address=auto "$@"
