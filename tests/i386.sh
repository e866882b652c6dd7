#!/bin/sh
# Run the tests of the core on a 32-bit Debian: i386.sh [DIR [PYTEST-ARGUMENT...]]
#
# DIR is where the Debian is made and kept (build/roots/bookworm-i386). 75 is the status where it
# cannot be made. uvloop has no wheel for it.
set -eu
tests=$(cd "$(dirname "$0")" && pwd)
root=${1-$tests/../build/roots/bookworm-i386}
[ $# = 0 ] || shift
[ $# -gt 0 ] || set -- tests/test_ancillary.py tests/test_batches.py tests/test_channel.py \
    tests/test_conduit.py tests/test_descriptor.py tests/test_endpoint.py tests/test_errors.py \
    tests/test_exactly.py tests/test_failing_calls.py tests/test_hazards.py \
    tests/test_listener.py tests/test_messages.py tests/test_one_descriptor.py \
    tests/test_payloads.py tests/test_reader.py tests/test_service_manager.py tests/test_waiting.py

"$tests/debian_root.sh" make bookworm i386 "$root" python3-venv python3-dev gcc libc6-dev
# shellcheck disable=SC2016  # the shell in there expands them
exec "$tests/debian_root.sh" run -b "$tests/..:/source" "$root" sh -euc '
    rm -rf tree && mkdir tree && cd tree
    tar -C /source -c --exclude="./.*" --exclude=./build --exclude=./dist \
        --exclude="./conduit/*.c" --exclude="./conduit/*.so" . | tar -x
    [ -e ../venv ] || python3 -m venv ../venv
    ../venv/bin/pip install --quiet --upgrade pip
    ../venv/bin/pip install --quiet "Cython>=3.1" "setuptools>=77" "pytest>=9" "anyio>=4.10" \
        "trio>=0.26" "hypothesis>=6.120"
    ../venv/bin/python setup.py --quiet build_ext --inplace
    ../venv/bin/python -c "import struct; print(struct.calcsize(\"P\") * 8, \"bits\")"
    PYTHONPATH=$PWD:$PWD/tests exec ../venv/bin/python -m pytest -k "not uvloop" "$@"
' sh "$@"
