#!/bin/sh
# Unpacks PyPy for Python 3.11, which a long hunt runs several times as fast on, beside whatever C
# library the machine has; nothing is installed. Where pypy3 is 3.11 already (Debian 13), that does:
#
#     apt-get install pypy3 pypy3-venv
#
# usage: tools/fetch-pypy.sh DIRECTORY
#
# Afterwards DIRECTORY/bin/pypy3 is there:
#
#     DIRECTORY/bin/pypy3 -m venv .venv-pypy && .venv-pypy/bin/pip install --editable .
#
# Needs apt-get, dpkg, patchelf and Debian's archive keys, on any release of Debian; 27 MB come
# through package lists of this script's own, and those of the machine are neither read nor changed.
# DEBIAN_MIRROR is http://deb.debian.org/debian, unless it is set.
set -eu

die() { echo "fetch-pypy.sh: $1" >&2; exit 1; }

[ $# -eq 1 ] || { echo "usage: $0 DIRECTORY" >&2; exit 2; }
suite=trixie
keys=/usr/share/keyrings/debian-archive-keyring.gpg
mkdir -p -- "$1" || die "$1 cannot be made"
target=$(cd -- "$1" && pwd)
if "$target/bin/pypy3" -c '' 2>/dev/null; then
	echo "already in $target"
	exit 0
fi
for tool in apt-get apt-cache dpkg patchelf; do
	command -v "$tool" >/dev/null || die "no $tool on PATH"
done
[ -e "$keys" ] || die "no $keys: install the package debian-archive-keyring"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/parts" "$work/debs"
: >"$work/status"
echo "deb [signed-by=$keys] ${DEBIAN_MIRROR:-http://deb.debian.org/debian} $suite main" >"$work/sources.list"
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
END
export APT_CONFIG="$work/apt.conf"
apt-get -qq update || die "no package lists of $suite"
needed=$(apt-cache depends --important pypy3 | sed -n 's/^ *|\{0,1\}\(Pre\)\{0,1\}Depends: \([^<]*\)$/\2/p')
# shellcheck disable=SC2086  # several words
(cd "$work/debs" && apt-get -qq download pypy3 pypy3-venv libstdc++6 $needed) || die "no packages"
unset APT_CONFIG
for package in "$work"/debs/*.deb; do
	dpkg -x "$package" "$target"
done

# All of it, and what it will load, is linked with the C library that lies beside it.
libraries=$target/usr/lib/x86_64-linux-gnu
for file in "$libraries"/lib*.so*; do
	case ${file##*/} in
	libc.so.* | libm.so.* | libmvec.so.*) continue ;;
	esac
	[ -L "$file" ] || patchelf --force-rpath --set-rpath "$libraries" "$file"
done
patchelf --force-rpath --set-rpath "$libraries" "$target/usr/bin/pypy3.11"
patchelf --set-interpreter "$libraries/ld-linux-x86-64.so.2" "$target/usr/bin/pypy3.11"
ln -sfn usr/bin "$target/bin"
"$target/bin/pypy3" -c '' || die "it does not run"
echo "$target/bin/pypy3"
