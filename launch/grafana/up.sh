#!/usr/bin/env bash
# Start Prometheus and Grafana on this machine and show a run's metrics, until Ctrl-C.
#
#   launch/grafana/up.sh [RUN_DIR]
#
# RUN_DIR is a run that goes on and started Ray itself; without it the Ray cluster of this machine (/tmp/ray) is shown.
# Needs the programs `prometheus` and `grafana`. They listen on 127.0.0.1 alone, at PROMETHEUS_PORT (9090) and
# GRAFANA_PORT (3000), and keep their data in WATCH_DATA (~/.local/state/capo_ray).
set -euo pipefail
if [[ $# -gt 1 || ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)

fail() {
    echo "error: $1" >&2
    exit 2
}

ray=/tmp/ray
if [[ $# -eq 1 ]]; then
    [[ -f $1/ray_session ]] || fail "$1/ray_session is not there: the run has ended, or joined a cluster; leave RUN_DIR out for that"
    ray=$(<"$1/ray_session")
fi
session=$ray/session_latest
config=$session/metrics/prometheus/prometheus.yml # of Ray's dashboard, with all nodes
ports=("$session"/metrics_export_port_*)          # without one: this machine
[[ -f $config || -f ${ports[0]} ]] || fail "no Ray runs in $ray"
for program in prometheus grafana; do
    command -v "$program" >/dev/null || fail "$program is not installed"
done

data=${WATCH_DATA:-$HOME/.local/state/capo_ray}
mkdir -p "$data/prometheus" "$data/grafana"
if [[ ! -f $config ]]; then
    config=$data/prometheus.yml
    printf 'scrape_configs: [{job_name: ray, scrape_interval: 10s, static_configs: [{targets: ["127.0.0.1:%s"]}]}]\n' \
        "$(<"${ports[0]}")" >"$config"
fi
export CAPO_RAY_PROMETHEUS=http://127.0.0.1:${PROMETHEUS_PORT:-9090}
export CAPO_RAY_DASHBOARDS=$here
export GF_PATHS_PROVISIONING=$here/provisioning GF_PATHS_DATA=$data/grafana
export GF_SERVER_HTTP_ADDR=127.0.0.1 GF_SERVER_HTTP_PORT=${GRAFANA_PORT:-3000}
export GF_AUTH_ANONYMOUS_ENABLED=true GF_SECURITY_ALLOW_EMBEDDING=true
export GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH=$here/capo_ray.json

trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM
prometheus --config.file="$config" --storage.tsdb.path="$data/prometheus" \
    --web.listen-address="${CAPO_RAY_PROMETHEUS#http://}" --log.level=warn &
grafana server --homepath "${GRAFANA_HOME:-/usr/share/grafana}" >"$data/grafana.log" 2>&1 &
echo "The run: http://127.0.0.1:$GF_SERVER_HTTP_PORT   Prometheus: $CAPO_RAY_PROMETHEUS   Ctrl-C ends both"
wait -n || true
echo "error: one of them has ended; see above and $data/grafana.log" >&2
exit 1
