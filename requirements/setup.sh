#!/usr/bin/env bash
# Makes .venv with the pinned stack and this package, once; later runs see their stamps and do nothing.
# Called by `make setup` (setup.sh cpu) and `make setup-gpu` (setup.sh gpu). PYTHON names the interpreter, VENV the
# folder.
set -euo pipefail
cd "$(dirname "$0")/.."

device=${1:-cpu}
venv=${VENV:-.venv}
lock=requirements/$device.lock
torch_index=https://download.pytorch.org/whl/cpu  # for the torch line alone: an extra index costs every package a look
lock_stamp=$venv/.capo-lock-$device-$(sha256sum "$lock" requirements/setup.sh | sha256sum | cut -c1-16)
package_stamp=$venv/.capo-package-$(cat setup.py pyproject.toml "$lock" | sha256sum | cut -c1-16)

say() { printf 'setup: %s\n' "$*" >&2; }

# pip, quiet: without the notes on folders of a pip.conf that lack a package.
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@" 2> >(grep -v 'is ignored: it is neither' >&2); }

# The stacks of CPU and GPU are packages of the same names: one over the other would be neither.
refuse_other_stack() {
    local other
    for other in "$venv"/.capo-lock-[cg]pu-*; do
        case $other in
        *-"$device"-* | *'*') ;;
        *)
            say "$venv holds the other stack (${other##*/.capo-lock-}): remove it, or name another folder: VENV=FOLDER"
            exit 1
            ;;
        esac
    done
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    say "Python 3.11 is needed ($lock is made for it) and none of ${PYTHON:-python3.11 python3} is one"
    say "name yours: make setup PYTHON=/path/to/python3.11; docs/gpu.md says how to get one on Ubuntu"
    exit 1
}

install_torch() {
    local torch
    torch=$(grep '^torch==' "$lock")
    say "  $torch"
    if [ "$device" = gpu ]; then
        pip install --no-deps --no-compile "$torch"
        return
    fi
    pip install --no-deps --no-compile "$torch" 2>/dev/null ||
        pip install --no-deps --no-compile --extra-index-url "$torch_index" "$torch"
}

install_stack() {
    local cost="about 3 minutes and 4 GB"
    [ "$device" = cpu ] || cost="many minutes and over 10 GB"
    say "making $venv with the stack of $lock: $cost, once"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    install_torch
    say "  the other $(grep -vc -e '^#' -e '^torch==' "$lock") packages"
    pip install --no-deps --no-compile -r "$lock"
    # Byte-compiling with all cores at once is faster than pip's own, one file after the other.
    PYTHONDONTWRITEBYTECODE='' "$venv/bin/python" -m compileall -q -j 0 "$venv/lib" >/dev/null 2>&1 || true
    rm -f "$venv"/.capo-lock-*
    touch "$lock_stamp"
}

SECONDS=0
refuse_other_stack
if [ ! -e "$lock_stamp" ]; then
    python=$(find_python)
    install_stack
fi
if [ ! -e "$package_stamp" ]; then
    say "  this package, editable"
    pip install --no-deps --no-build-isolation --editable .
    rm -f "$venv"/.capo-package-*
    touch "$package_stamp"
    say "done in $SECONDS s"
fi
