#!/bin/sh
# Fetches a Debian amd64 kernel and unpacks its vmlinuz, without installing anything.
#
#     tools/fetch-linux.sh [--suite SUITE] DIRECTORY [PACKAGE]
#
# SUITE is a release of Debian: bullseye, bookworm, trixie, sid, experimental, NAME-backports. Its
# package lists are kept under ${XDG_CACHE_HOME:-~/.cache}/paravirt-mm/apt, and the machine's own
# package sources are neither read nor changed. Without a suite those are used: run apt-get update
# first. DEBIAN_MIRROR is http://deb.debian.org/debian, unless it is set; suites that are no longer
# there are at http://archive.debian.org/debian.
#
# PACKAGE is by default the kernel that linux-image-amd64 depends on. Any other works: a meta-package
# (linux-image-cloud-amd64, small), an image, or since Debian 14 its linux-binary-*, which is where
# the kernel then lies; meta-packages and images that hold no kernel lead there by themselves.
#
# Needs apt-get, apt-cache and dpkg-deb, and 15 to 110 MB while it runs; 7 to 15 MB stay, in
# DIRECTORY/PACKAGE/boot. Afterwards PARAVIRT_MM_LINUX=DIRECTORY is what the tests and
# `paravirt-mm verify linux` want.
set -eu

usage() {
    echo "usage: $0 [--suite SUITE] DIRECTORY [PACKAGE]" >&2
    exit 2
}
fail() {
    echo "fetch-linux.sh: $*" >&2
    exit 1
}

suite=
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
case ${1:-} in
--suite)
    [ $# -ge 3 ] || usage
    suite=$2
    shift 2
    ;;
--suite=*)
    suite=${1#--suite=}
    shift
    ;;
-*) usage ;;
esac
[ $# -eq 1 ] || [ $# -eq 2 ] || usage
case $suite in
*[!a-z-]*) fail "'$suite' is no suite of Debian: bookworm, sid, experimental, ..." ;;
esac
for tool in apt-get apt-cache dpkg-deb tar; do
    command -v "$tool" >/dev/null || fail "no $tool on the path: this needs Debian or a relative"
done

# apt with lists and sources of its own.
apt_of_suite() {
    home=${XDG_CACHE_HOME:-$HOME/.cache}/paravirt-mm/apt/$suite
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -r "$keys" ] || fail "no $keys: install the package debian-archive-keyring"
    mkdir -p "$home/lists/partial" "$home/cache/archives/partial"
    : >"$home/status"
    echo "deb [arch=amd64 signed-by=$keys] $mirror $suite main" >"$home/sources.list"
    cat >"$home/apt.conf" <<END
Dir::Etc::SourceList "$home/sources.list";
Dir::Etc::SourceParts "-";
Dir::State::Lists "$home/lists";
Dir::State::status "$home/status";
Dir::Cache "$home/cache";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Sandbox::User "$(id -un)";
Acquire::Languages "none";
END
    export APT_CONFIG="$home/apt.conf"
    apt-get -q -o APT::Update::Error-Mode=any update >"$home/update.log" 2>&1 || {
        sed -n 's/^[EW]: /    /p' "$home/update.log" >&2
        fail "no package lists of suite '$suite' from $mirror: is that its name, and the network there?"
    }
}

# Follows a package to the one that holds the kernel.
holder_of() {
    holder=$1
    for _ in 1 2 3; do
        listed=$(apt-cache depends --important -- "$holder" 2>/dev/null) || return 1
        next=$(printf '%s\n' "$listed" |
            sed -n 's/^ *|\{0,1\}Depends: \(linux-binary-[^ ]*\|linux-image-[0-9][^ ]*\)$/\1/p' |
            head -n 1)
        [ -n "$next" ] || break
        holder=$next
    done
}

here=${suite:+"suite '$suite'"}
here=${here:-"the machine's package sources (run apt-get update, or name a suite: --suite sid)"}
mkdir -p -- "$1" || fail "$1 cannot be made"
directory=$(cd -- "$1" && pwd)
[ -z "$suite" ] || apt_of_suite
package=${2:-linux-image-amd64}
holder_of "$package" || fail "no package $package in $here"
case $holder in
linux-binary-*) inside='./usr/lib/modules/*/vmlinuz' ;;
linux-image-[0-9]*) inside='./boot/vmlinuz-*' ;;
*) fail "$package leads to no kernel ($holder) in $here" ;;
esac

target=$directory/$holder
if ls "$target"/boot/vmlinuz-* >/dev/null 2>&1; then
    ls "$target"/boot/vmlinuz-*
    exit 0
fi
download=$(mktemp -d)
trap 'rm -rf -- "$download"' EXIT
trap 'exit 1' HUP INT TERM
(cd "$download" && apt-get -q -o APT::Sandbox::User=root download -- "$holder" >log 2>&1) || {
    cat "$download/log" >&2
    fail "$holder cannot be downloaded: are the package lists of today (apt-get update)?"
}
# Modules are most of an older package, and nothing here needs them.
dpkg-deb --fsys-tarfile "$download"/*.deb | tar -x -C "$download" --wildcards "$inside" ||
    fail "$holder holds no kernel at $inside"
mkdir -p -- "$target/boot"
for kernel in "$download"/boot/vmlinuz-* "$download"/usr/lib/modules/*/vmlinuz; do
    case $kernel in
    */boot/vmlinuz-\**|*/modules/\*/*) continue ;; # the pattern itself: no such file
    */boot/*) name=${kernel##*/} ;;
    *) name=${kernel%/vmlinuz} && name=vmlinuz-${name##*/} ;;
    esac
    mv -- "$kernel" "$target/boot/$name"
done
ls "$target"/boot/vmlinuz-*
