#!/usr/bin/env bash
# Classifies one handwritten digit twice: with the sconce binary and with tritonclient in Python.
# A server must be running: `make run` in another terminal, or elsewhere with SCONCE_ADDRESS set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export SCONCE_ADDRESS=${SCONCE_ADDRESS:-127.0.0.1:8001}
binary=${CARGO_TARGET_DIR:-target}/release/sconce
python=${SCONCE_TEST_PYTHON:-python3}
digit=tests/data/digit.png

die() {
    printf 'demo: %s\n' "$@" >&2
    exit 1
}

[ -x "$binary" ] || die "there is no $binary yet: run \`make build\`."
"$python" -c 'import numpy, PIL, tritonclient.grpc' 2>/dev/null ||
    die "$python has no tritonclient: run \`make demo\`, which sets up a Python that has it," \
        "or \`pip install -r tests/clients/python/requirements.txt\`."
(exec 3<>"/dev/tcp/${SCONCE_ADDRESS%:*}/${SCONCE_ADDRESS##*:}") 2>/dev/null ||
    die "no server answers at $SCONCE_ADDRESS." \
        "Start one with \`make run\` in another terminal and run this again," \
        "or set SCONCE_ADDRESS to the host:port of one that serves model_repository."

echo "A handwritten digit that the model was not trained on ($digit):"
echo
"$python" tests/clients/python/demo.py --show "$digit"
echo
echo "sconce infer digits --input image=@$digit"
"$binary" infer digits --input "image=@$digit" | sed 's/^./    &/'
echo
echo "The same through NVIDIA's tritonclient (tests/clients/python/demo.py):"
"$python" tests/clients/python/demo.py "$digit"
