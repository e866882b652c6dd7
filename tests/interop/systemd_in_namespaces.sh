#!/bin/sh
# A real systemd as process 1 of namespaces of its own, with no units but those of a directory.
#
#   systemd_in_namespaces.sh DIR [--net]
#       Boot it with the units in DIR/units, and end it when standard input ends, as it does when
#       the process that holds the other end dies. It says READY=1 to the socket DIR/notify once it
#       has booted; DIR/messages gets what it logs. With --net it has a network of its own. 75 is
#       the status where the system does not allow it, and the last line on standard error says why.
#
# What is mounted here nobody else sees. /etc and /proc/sys are read-only in there: process 1 would
# set them up as if the machine were its own.
set -eu

here=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")

refuse() { # REASON
    echo "$1" >&2
    exit 75
}

# In a mount namespace: the control group is made here, and removed in the end.
outside() { # DIR [--net]
    network=${2-}
    mkdir "$1/cgroup"
    mount -t cgroup2 cgroup2 "$1/cgroup" 2>/dev/null || refuse "cgroup2 cannot be mounted here"
    group=$1/cgroup/conduit-test-$$
    mkdir "$group" 2>/dev/null || refuse "no control group can be made here"
    : >"$1/messages"
    trap 'remove "$group"' EXIT
    (alone "$group" "$1" true) || refuse "it lacks a namespace, or may not mount in one"
    alone "$group" "$1" env -i container=other PATH="$PATH" SYSTEMD_UNIT_PATH="$1/units" \
        NOTIFY_SOCKET="$1/notify" /lib/systemd/systemd --system --unit=default.target \
        --log-target=kmsg --show-status=no </dev/null &
    cat >/dev/null
    # Process 1 goes with it, and all of its namespace with that.
    kill -KILL $!
    wait $! 2>/dev/null || true
}

remove() { # GROUP
    while grep -q 'populated 1' "$1/cgroup.events"; do :; done
    find "$1" -depth -type d -exec rmdir {} \;
}

# Replaces the shell, which joins the group.
alone() { # GROUP DIR COMMAND...
    group=$1
    shift
    # shellcheck disable=SC2016,SC2086  # the other shell expands it; a word or none
    exec sh -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$group" \
        unshare --fork --kill-child --pid --mount --uts --ipc --cgroup --mount-proc $network \
        "$here" --inside "$@"
}

inside() { # DIR COMMAND...
    dir=$1
    shift
    mount -t tmpfs tmpfs /run
    mkdir -p /run/systemd/system /run/lock
    for place in /etc /proc/sys; do
        mount --bind "$place" "$place"
        mount -o remount,bind,ro "$place"
    done
    if [ -e /dev/kmsg ]; then mount --bind "$dir/messages" /dev/kmsg; fi
    umount -R /sys/fs/cgroup 2>/dev/null || true
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    exec "$@"
}

case $1 in
--outside)
    shift
    outside "$@"
    ;;
--inside)
    shift
    inside "$@"
    ;;
*)
    unshare --mount --propagation private true 2>/dev/null || refuse "namespaces are forbidden here"
    exec unshare --mount --propagation private "$here" --outside "$@"
    ;;
esac
