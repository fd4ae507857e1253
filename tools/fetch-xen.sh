#!/bin/sh
# Unpacks what `paravirt-mm verify xen --live` boots, without installing anything of Xen:
#
#   xen-hypervisor-4.17-amd64   the hypervisor
#   libxen-dev                  its public headers, for building the guest
#
# Besides these the live replay needs, installed: qemu-system-x86 and gcc.
#
# usage: tools/fetch-xen.sh [DIRECTORY]
#
# DIRECTORY is $PARAVIRT_MM_XEN if that is set, else ${XDG_CACHE_HOME:-~/.cache}/paravirt-mm/xen,
# the two places that the live replay looks in. Nothing is done if they are there already.
# Needs apt-get with current package lists (Debian 12), and dpkg.
set -eu

packages="xen-hypervisor-4.17-amd64 libxen-dev"
target=${1:-${PARAVIRT_MM_XEN:-${XDG_CACHE_HOME:-$HOME/.cache}/paravirt-mm/xen}}

if [ -e "$target/boot/xen-4.17-amd64" ] && [ -e "$target/usr/include/xen/xen.h" ]; then
	echo "already in $target"
	exit 0
fi
for tool in apt-get dpkg gzip; do
	command -v "$tool" >/dev/null || { echo "fetch-xen.sh: no $tool on PATH" >&2; exit 1; }
done

downloads=$(mktemp -d)
trap 'rm -rf "$downloads"' EXIT
trap 'exit 1' HUP INT TERM

for package in $packages; do
	(cd "$downloads" && apt-get -q -o APT::Sandbox::User=root download "$package") || {
		echo "fetch-xen.sh: no package $package: run apt-get update; is this Debian 12?" >&2
		exit 1
	}
done
mkdir -p "$target"
for package in "$downloads"/*.deb; do
	dpkg -x "$package" "$target"
done
gzip -dkf "$target/boot/xen-4.17-amd64.gz"
echo "unpacked to $target"
