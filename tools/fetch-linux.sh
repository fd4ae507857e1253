#!/bin/sh
# Fetches Debian's current amd64 kernel and unpacks it, without installing anything.
#
#     tools/fetch-linux.sh DIRECTORY [PACKAGE]
#
# PACKAGE is by default what linux-image-amd64 depends on. Needs apt-get, apt-cache and dpkg-deb,
# package lists (apt-get update) and 80 MB while it runs; 10 MB stay. Afterwards
# PARAVIRT_MM_LINUX=DIRECTORY is what the tests and `paravirt-mm verify linux` want.
set -eu

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: $0 DIRECTORY [PACKAGE]" >&2
    exit 2
fi
mkdir -p -- "$1"
directory=$(cd -- "$1" && pwd)
package=${2:-$(apt-cache depends --important linux-image-amd64 |
    sed -n 's/^ *Depends: \(linux-image-[0-9].*-amd64\)$/\1/p' | head -n 1)}
if [ -z "$package" ]; then
    echo "$0: apt-cache knows no linux-image-amd64: run apt-get update, or name a package" >&2
    exit 1
fi
if ls "$directory/$package"/boot/vmlinuz-* >/dev/null 2>&1; then
    echo "$directory/$package: already there"
    exit 0
fi

download=$(mktemp -d)
trap 'rm -rf -- "$download"' EXIT
(cd "$download" && apt-get -o APT::Sandbox::User=root download -- "$package")
# Modules are most of the package and nothing here needs them.
mkdir -p -- "$directory/$package"
for archive in "$download"/*.deb; do
    dpkg-deb --fsys-tarfile "$archive" | tar -x -C "$directory/$package" ./boot
done
ls "$directory/$package"/boot/vmlinuz-*
