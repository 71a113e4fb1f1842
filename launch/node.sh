#!/usr/bin/env bash
# Ray on this node, in the foreground until it is stopped: the head where HEAD is this node, a worker anywhere else.
#
#   HEAD=10.0.0.1 launch/node.sh [options of `ray start`]
#
# The same command on every node. HEAD is the name or address of the first; RAY_PORT (6379) must be open on it. A worker
# waits WAIT_S (600) seconds for the head. The environment, with `ray` in PATH, is the same on every node.
# Told to end (SIGTERM) it stays until the run has left it, GRACE_S (30) seconds at most: set that a little below what
# whoever ends it waits before SIGKILL.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help || -z ${HEAD:-} ]]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit 2
fi
port=${RAY_PORT:-6379}
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=${GRACE_S:-30}
# By default a connection on which nothing is answered for 20 s is closed, and the calls of actors with it.
export RAY_grpc_keepalive_timeout_ms=${RAY_grpc_keepalive_timeout_ms:-60000}

is_head() {
    local name
    for name in localhost 127.0.0.1 "$(hostname)" "$(hostname -s)" $(hostname -I 2>/dev/null || true); do
        [[ $HEAD == "$name" ]] && return
    done
    return 1
}

if is_head; then
    own=()
    [[ $HEAD =~ ^[0-9.]+$ ]] && own=(--node-ip-address="$HEAD")
    exec ray start --head --port="$port" "${own[@]}" --disable-usage-stats --block "$@"
fi
deadline=$((SECONDS + ${WAIT_S:-600}))
until (exec 3<>"/dev/tcp/$HEAD/$port") 2>/dev/null; do
    if ((SECONDS >= deadline)); then
        echo "node.sh: nothing listens at $HEAD:$port after ${WAIT_S:-600} s; see that Ray's head runs there and the port is open" >&2
        exit 1
    fi
    sleep 2
done
exec ray start --address="$HEAD:$port" --disable-usage-stats --block "$@"
