#!/bin/sh
# What a stranger meets: the README's commands on a bare Debian, as an ordinary user.
#
#   fresh_machine.sh [SUITE...]         bookworm and trixie unless told otherwise
#
# Each SUITE is a Debian of its own with nothing but the packages that the README names; a clone
# of what is committed here, in a folder with a space in its name; a soft limit of 1024
# descriptors. There `make demo` and `make test` run, and then, with a source file changed, `make
# demo` and some of the tests without a network. At last the tests run as a root that may do
# nothing (no capabilities, as in a container), with a umask of 077 and a hard limit of 1024.
# Run it as root before a release: it takes some fifteen minutes. DEBIAN_ROOTS is where these
# systems are kept, to be used again.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
source=$(dirname "$here")
roots=${DEBIAN_ROOTS:-/var/tmp/conduit-debian}
# shellcheck disable=SC2016  # the backticks are the README's
packages=$(sed -n 's/^`apt-get install \(.*\)`\.$/\1/p' "$source/README.md")
[ -n "$packages" ] || { echo "the README names no packages" >&2; exit 1; }
[ $# -gt 0 ] || set -- bookworm trixie

# What runs in there, as the user.
# shellcheck disable=SC2016  # the shell in there expands them
visit='
set -eux
id -un
ulimit -Sn 1024
rm -rf "a clone"
git clone --quiet /given/conduit.bundle "a clone"
cd "a clone"
make demo
start=$(date +%s)
make test
echo "make test: $(($(date +%s) - start)) s"
'
again='
set -eux
cd "a clone"
touch conduit/peer.py
make demo
make test ENVS=py TOX_ARGS="-- tests/test_one_descriptor.py"
'

bound='
set -eux
umask 077
ulimit -n 1024
rm -rf "/root/a clone"
git clone --quiet /given/conduit.bundle "/root/a clone"
cd "/root/a clone"
setpriv --bounding-set=-all --inh-caps=-all sh -euxc "
    grep CapEff /proc/self/status
    make demo
    make test ENVS=py
"
'

given=$(mktemp -d)
trap 'rm -rf "$given"' EXIT
chmod 755 "$given"
git -C "$source" bundle create --quiet "$given/conduit.bundle" HEAD

failed=
for suite; do
    root=$roots/$suite
    # shellcheck disable=SC2086  # each word a package
    "$here/debian_root.sh" make "$suite" "$(dpkg --print-architecture)" "$root" $packages
    echo "== $suite"
    "$here/debian_root.sh" run -u stranger -b "$given:/given" "$root" sh -c "$visit" ||
        failed="$failed $suite"
    echo "== $suite, without a network"
    unshare --net sh -c 'ip link set lo up && exec "$@"' sh \
        "$here/debian_root.sh" run -u stranger "$root" sh -c "$again" ||
        failed="$failed $suite-offline"
    echo "== $suite, as a root without capabilities"
    "$here/debian_root.sh" run -b "$given:/given" "$root" sh -c "$bound" ||
        failed="$failed $suite-bound"
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
