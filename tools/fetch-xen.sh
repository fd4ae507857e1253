#!/bin/sh
# Unpacks what `paravirt-mm verify xen --live` boots, without installing anything of Xen:
#
#   xen-hypervisor-VERSION-amd64   the hypervisor
#   libxen-dev                     its public headers, of the same release, for building the guest
#
# Besides these the live replay needs, installed: qemu-system-x86 and gcc.
#
# usage: tools/fetch-xen.sh [VERSION] [DIRECTORY]
#
# VERSION is 4.14 (from Debian 11), 4.17 (Debian 12; the default) or 4.20 (Debian 13). DIRECTORY of
# the default is $PARAVIRT_MM_XEN if that is set, else ${XDG_CACHE_HOME:-~/.cache}/paravirt-mm/xen,
# the two places that the live replay looks in; for the others it is that with "-VERSION" behind it.
# Nothing is done if they are there already.
#
# Needs apt-get, dpkg and Debian's archive keys, on any release of Debian: the packages come through
# package lists of this script's own, and those of the machine are neither read nor changed.
set -eu

die() { echo "fetch-xen.sh: $1" >&2; exit 1; }

version=4.17
case "${1:-}" in
[0-9].[0-9]*) version=$1; shift ;;
esac
[ $# -le 1 ] || { echo "usage: $0 [VERSION] [DIRECTORY]" >&2; exit 2; }
case "$version" in
4.14) suite=bullseye ;;
4.17) suite=bookworm ;;
4.20) suite=trixie ;;
*) die "no Debian release has Xen $version; there are 4.14, 4.17 and 4.20" ;;
esac
base=${PARAVIRT_MM_XEN:-${XDG_CACHE_HOME:-$HOME/.cache}/paravirt-mm/xen}
[ "$version" = 4.17 ] || base=$base-$version
target=${1:-$base}
hypervisor=$target/boot/xen-$version-amd64

if [ -e "$hypervisor" ] && [ -e "$target/usr/include/xen/xen.h" ]; then
	echo "already in $target"
	exit 0
fi
for tool in apt-get dpkg gzip; do
	command -v "$tool" >/dev/null || die "no $tool on PATH"
done
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[ -e "$keys" ] || die "no $keys: install the package debian-archive-keyring"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/parts" "$work/debs"
: >"$work/status"
cat >"$work/apt.conf" <<END
Dir::Etc::SourceList "$work/sources.list";
Dir::Etc::SourceParts "$work/parts";
Dir::State::Lists "$work/lists";
Dir::State::Status "$work/status";
Dir::Cache "$work/cache";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
END
apt() { APT_CONFIG="$work/apt.conf" apt-get -qq "$@"; }

# A release leaves the mirrors for the archive when its support ends.
lists() {
	for part in debian/:$suite debian-security/:$suite-security; do
		echo "deb [signed-by=$keys] http://$1/${part%:*} ${part#*:} main"
	done >"$work/sources.list"
	apt update
}
lists deb.debian.org || lists archive.debian.org || die "no package lists of $suite"

for package in "xen-hypervisor-$version-amd64" libxen-dev; do
	(cd "$work/debs" && apt download "$package") || die "$suite has no package $package"
done
mkdir -p "$target"
for package in "$work"/debs/*.deb; do
	dpkg -x "$package" "$target"
done
gzip -dkf "$hypervisor.gz"
echo "unpacked to $target"
