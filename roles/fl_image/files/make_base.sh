#!/usr/bin/env bash
# Make an image out of Debian packages (air-gapped mode): a tar for `docker import`.
#   make_base.sh SUITE ARCH MIRROR|"" OUT.tar PACKAGE...
set -euo pipefail
suite=$1 arch=$2 mirror=$3 out=$4
shift 4
packages=$(IFS=,; echo "$*")
what="Debian with ${packages%%[ ,]*}"
as_root=""
[ "$(id -u)" = 0 ] || as_root=sudo
mkdir -p "$(dirname "$out")"
exec 9>"$out.lock"
flock 9  # another deployment may be making the same one
[ ! -e "$out" ] || exit 0
[ -n "$mirror" ] || mirror=$("$(dirname "$0")/../../../scripts/debian_mirror.sh")
hooks=/usr/share/mmdebstrap/hooks/merged-usr
echo "$what: $suite ($arch), $* and what they need"
rm -f "$out.part"
# Times are set to one date: the same packages give the same tar.
SOURCE_DATE_EPOCH=1700000000 $as_root mmdebstrap --mode=root --format=tar --variant=minbase --architectures="$arch" --hook-dir="$hooks" \
  --include="$packages" \
  --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
  --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/log/*' \
  --customize-hook='mkdir -p "$1"/var/log/nginx && useradd --root "$1" --uid 10001 --no-create-home --shell /usr/sbin/nologin coldframe' \
  "$suite" "$out.part" ${mirror:+"$mirror"} 2>&1 |
  sed -unE "s/^I: (.*)/$what: \1/p; /^[EW]: |rror/p"
[ -z "$as_root" ] || sudo chown "$(id -u)" "$out.part"
mv "$out.part" "$out"
echo "$what: $(du -m "$out" | cut -f1) MB in $out"
