#!/usr/bin/env bash
# Fetch Prometheus 3 for the tests into the cache, tools/prometheus-3/: prometheus and promtool of Debian's next release, unpacked.
# What is deployed is another matter (prometheus_image). Where it cannot be fetched a line says so, and the tests of it are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=${COLDFRAME_CACHE:-$HOME/.cache/coldframe}/tools
[ ! -x "$tools/prometheus-3/promtool" ] || exit 0
suite=forky
mirror=$(scripts/debian_mirror.sh)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
skip() { printf 'setup: no Prometheus 3 (%s): its tests will be skipped\n' "$1" >&2; exit 0; }
command -v apt-get >/dev/null || skip "this machine has no apt-get"
keyring=$(ls /usr/share/keyrings/debian-archive-keyring.{gpg,pgp} 2>/dev/null | head -n 1) || true
[ -n "$keyring" ] || skip "the package debian-archive-keyring is missing"
[ -n "$mirror" ] || skip "this is no Debian, and COLDFRAME_DEBIAN_MIRROR names no mirror of it"
printf '\033[1m==>\033[0m Prometheus 3, of Debian %s\n' "$suite" >&2
# Lists and packages of its own: the machine's apt does not learn of that release.
mkdir -p "$work"/lists/partial "$work"/cache/archives/partial "$work/packages"
touch "$work/status"
echo "deb [signed-by=$keyring] $mirror $suite main" >"$work/sources.list"
cat >"$work/apt.conf" <<CONF
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "$work/lists";
Dir::State::status "$work/status";
Dir::Cache "$work/cache";
APT::Sandbox::User "";
Acquire::Languages "none";
CONF
export APT_CONFIG=$work/apt.conf
{ apt-get update -qq && cd "$work/packages" && apt-get download -q prometheus promtool; } >"$work/log" 2>&1 || skip "$(tail -n 1 "$work/log")"
for package in "$work"/packages/*.deb; do
  dpkg-deb -x "$package" "$work/unpacked"
done
mkdir -p "$tools"
rm -rf "$tools/prometheus-3"
mv "$work/unpacked/usr/bin" "$tools/prometheus-3"
