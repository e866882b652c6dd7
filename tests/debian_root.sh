#!/bin/sh
# A bare Debian in a directory, and commands in it, to try what a machine that is not ours does.
#
#   debian_root.sh make SUITE ARCH DIR [PACKAGE...]
#       Make it with debootstrap, or add to the one that is there the packages it lacks. ARCH is
#       amd64, i386 or another that this kernel runs. 75 is the status where it cannot be made
#       (not root, no debootstrap, no mirror), and the last line says why.
#
#   debian_root.sh run [-u USER] [-b SOURCE:TARGET]... [-w WORKDIR] DIR COMMAND [ARGUMENT...]
#       Run a command in it, as root or as the ordinary user USER, who is made at need. SOURCE is
#       seen as TARGET in there. The status is the command's.
#
# apt and pip find in there what they find here: name servers, proxies, certificates and pip's
# configuration are this machine's. DEBIAN_MIRROR names another mirror than apt's here.
set -eu

here=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")

usage() {
    sed -n 's/^#   \(debian_root\.sh .*\)/usage: \1/p' "$here" >&2
    exit 2
}

give_up() { # REASON
    echo "debian_root.sh: no root of $suite $arch: $1" >&2
    exit 75
}

# What is mounted for a command is seen by it and its children alone, and gone after they end,
# however they do.
alone() { # FUNCTION ARGUMENT...
    unshare --mount --propagation private -- "$here" --alone "$@"
}

# The mirror that apt uses here for Debian itself, if it does; else debootstrap knows one.
mirror() {
    if [ -n "${DEBIAN_MIRROR-}" ]; then
        echo "$DEBIAN_MIRROR"
    elif command -v apt-get >/dev/null; then
        # shellcheck disable=SC2016  # apt fills these in
        apt-get indextargets --format '$(REPO_URI)' \
            'Identifier: Packages' 'Origin: Debian' 'Label: Debian' 2>/dev/null | head -n 1
    fi
}

make() { # SUITE ARCH DIR [PACKAGE...]
    suite=$1 arch=$2 root=$3
    shift 3
    [ "$(id -u)" = 0 ] || give_up "only root can make one"
    unshare --mount true 2>/dev/null || give_up "mount namespaces are forbidden here"
    mkdir -p "$(dirname "$root")"
    root=$(cd "$(dirname "$root")" && pwd)/$(basename "$root")
    exec 9>"$root.lock"
    flock 9

    if [ "$(cat "$root/etc/debian_root" 2>/dev/null)" != "$suite $arch" ]; then
        command -v debootstrap >/dev/null || give_up "debootstrap is not installed"
        rm -rf --one-file-system "$root" "$root.part"
        alone bootstrap "$suite" "$arch" "$root.part" >"$root.log" 2>&1 9>&- || {
            rm -rf --one-file-system "$root.part"
            tail -n 20 "$root.log" >&2
            give_up "debootstrap failed; all it said is in $root.log"
        }
        mv "$root.part" "$root"
    fi

    missing=
    for package; do
        # shellcheck disable=SC2016  # dpkg-query fills it in
        state=$(chroot "$root" dpkg-query -Wf '${Status}' "$package" 2>/dev/null) || state=
        [ "$state" = "install ok installed" ] || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    # shellcheck disable=SC2086  # each word a package
    { alone run root / "" "$root" apt-get -q update &&
        alone run root / "" "$root" apt-get -q install --yes --no-install-recommends $missing
    } >"$root.log" 2>&1 </dev/null 9>&- || {
        tail -n 20 "$root.log" >&2
        give_up "apt-get failed; all it said is in $root.log"
    }
}

bootstrap() { # SUITE ARCH DIR
    # debootstrap asks wget, which knows apt's proxies by no other way than these.
    for scheme in http https; do
        eval "$(apt-config shell proxy "Acquire::$scheme::Proxy" 2>/dev/null)"
        [ -z "${proxy-}" ] || export "${scheme}_proxy=$proxy"
        proxy=
    done
    # shellcheck disable=SC2046  # no word where debootstrap is to choose
    debootstrap --variant=minbase --arch="$2" --include=ca-certificates "$1" "$3" $(mirror)

    mkdir -p "$3/etc/apt/apt.conf.d" "$3/etc/dpkg/dpkg.cfg.d"
    # Proxies and the like are this machine's; lists of what to fetch are the root's own.
    ! command -v apt-config >/dev/null ||
        apt-config dump Acquire | grep -E '^Acquire::(https?|ftp|Retries|ForceIPv)' \
            >"$3/etc/apt/apt.conf.d/80host" || [ $? = 1 ]
    # A mirror may be behind, and its Release have expired; its signature is checked all the same.
    cat >"$3/etc/apt/apt.conf.d/90root" <<'CONF'
Acquire::Check-Valid-Until "false";
Acquire::Check-Date "false";
Acquire::Languages "none";
CONF
    # It is made anew if the machine dies, and needs no disk to be waited for.
    echo force-unsafe-io >"$3/etc/dpkg/dpkg.cfg.d/root"
    # No service is started in there.
    printf '#!/bin/sh\nexit 101\n' >"$3/usr/sbin/policy-rc.d"
    chmod 755 "$3/usr/sbin/policy-rc.d"
    echo "$1 $2" >"$3/etc/debian_root"
}

# Files and directories that the environment and pip's configuration here name.
pip_paths() { # CONFIG...
    {
        for config; do
            ! [ -f "$config" ] || tr -s ' \t=' '\n' <"$config"
        done
        env | sed -n 's/^PIP_[A-Z_]*=//p' | tr ' ' '\n'
    } | sed -nE 's|^(file://)?/|/|p' | sort -u
}

run() { # USER WORKDIR BINDS DIR COMMAND [ARGUMENT...]
    user=$1 workdir=$2 binds=$3 root=$4
    shift 4
    # Its root is a mount then, and who runs in there may make mount namespaces, too.
    mount --bind "$root" "$root"
    for directory in proc sys dev; do
        mount --rbind "/$directory" "$root/$directory"
    done
    cp /etc/resolv.conf /etc/hosts "$root/etc/"
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    # A user's own configuration here is everybody's there.
    own=${PIP_CONFIG_FILE-}
    unset PIP_CONFIG_FILE
    for config in "$HOME/.config/pip/pip.conf" "$HOME/.pip/pip.conf"; do
        ! [ -z "$own" ] || ! [ -f "$config" ] || own=$config
    done
    pip_paths /etc/pip.conf /etc/xdg/pip/pip.conf "$own" | while IFS= read -r file; do
        case $file in
        # The certificates are there already.
        /etc/ssl/* | /dev/*) continue ;;
        # An index in a directory has its files beside it.
        */simple | */simple/) file=$(dirname "$file") ;;
        esac
        # What is gone pip ignores here, too.
        ! [ -e "$file" ] || bind "$file" "$file"
    done
    for config in /etc/pip.conf /etc/xdg/pip/pip.conf; do
        ! [ -f "$config" ] || bind "$config" "$config"
    done
    if [ -f "$own" ]; then
        cp "$own" "$root/etc/pip.own.conf"
        export PIP_CONFIG_FILE=/etc/pip.own.conf
    fi
    printf '%s' "$binds" | while IFS= read -r pair; do
        bind "${pair%%:*}" "${pair#*:}"
    done
    if ! chroot "$root" id "$user" >/dev/null 2>&1; then
        chroot "$root" useradd --create-home --shell /bin/sh "$user"
    fi
    home=$(chroot "$root" getent passwd "$user" | cut -d : -f 6)

    # Nothing of the environment goes along but what is said here.
    set -- setpriv --reuid="$user" --regid="$user" --init-groups -- \
        env -C "${workdir:-$home}" -- "$@"
    set -- "HOME=$home" "USER=$user" "LOGNAME=$user" LANG=C.UTF-8 "TERM=${TERM:-dumb}" \
        DEBIAN_FRONTEND=noninteractive \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        chroot "$root" "$@"
    for name in $(env | sed -nE 's/^(PIP_[A-Z_]+|SSL_CERT_(FILE|DIR)|(https?|no)_proxy|(HTTPS?|NO)_PROXY)=.*/\1/p'); do
        eval "set -- \"$name=\$$name\" \"\$@\""
    done
    exec env -i "$@"
}

bind() { # SOURCE TARGET: within $root; a link in there is not followed out of it
    if [ -d "$1" ]; then
        chroot "$root" mkdir -p "$2"
    else
        # shellcheck disable=SC2016  # the shell in there expands them
        chroot "$root" sh -c 'mkdir -p "$(dirname "$1")" && [ -e "$1" ] || : >"$1"' sh "$2"
    fi
    mount --rbind "$1" "$root/$2"
}

case ${1-} in
make)
    [ $# -ge 4 ] || usage
    shift
    make "$@"
    ;;
run)
    shift
    user=root workdir='' binds=''
    while getopts u:b:w: option; do
        case $option in
        u) user=$OPTARG ;;
        w) workdir=$OPTARG ;;
        b)
            binds="$binds$OPTARG
"
            ;;
        *) usage ;;
        esac
    done
    shift $((OPTIND - 1))
    [ $# -ge 2 ] || usage
    alone run "$user" "$workdir" "$binds" "$@"
    ;;
--alone)
    shift
    "$@"
    ;;
*) usage ;;
esac
