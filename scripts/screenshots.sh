#!/usr/bin/env bash
# Draw the dashboards with Grafana's own components, from the Prometheus of a standing federation: docs/img/dashboard-*.png.
#   scripts/screenshots.sh [URL [more arguments of dashboards/render/render.mjs, such as --set client=NAME]]
# URL is Prometheus', https://127.0.0.1:9090 unless given. FEDERATION names the federation (default coldframe), whose password and
# authority are read from the controller's state.
# Needs node, npm and Chromium (Debian: apt-get install nodejs npm chromium fonts-inter); CHROMIUM names another browser.
set -euo pipefail
cd "$(dirname "$0")/.."
url=${1:-https://127.0.0.1:9090}
[ $# -eq 0 ] || shift
state=${XDG_STATE_HOME:-$HOME/.local/state}/coldframe/${FEDERATION:-coldframe}
[ -r "$state/monitoring/prometheus.password" ] || {
  echo "screenshots: no federation ${FEDERATION:-coldframe} was deployed from here ($state): type make up, or FEDERATION=NAME $0" >&2
  exit 2
}
cache=${COLDFRAME_CACHE:-$HOME/.cache/coldframe}
repository=$PWD
modules=$cache/render/$(cat dashboards/render/package.json dashboards/render/package-lock.json | sha256sum | cut -c1-12)
mkdir -p "$modules"
cp dashboards/render/* "$modules"
cd "$modules"
[ -e node_modules/.complete ] || {
  npm ci --silent --ignore-scripts --no-audit --no-fund --legacy-peer-deps
  touch node_modules/.complete
}
node build.mjs
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
COLDFRAME_REPOSITORY=$repository node render.mjs --prometheus "$url" --user coldframe --password-file "$state/monitoring/prometheus.password" \
  --ca "$state/pki/monitoring/ca.crt" --out "$work" "$@"
mkdir -p "$repository/docs/img"
for picture in "$work"/*.png; do
  "$repository/.venv/bin/python" - "$picture" "$repository/docs/img/dashboard-$(basename "$picture")" <<'PY'
import sys
from PIL import Image

# A screenshot has few colours: a palette makes it a third as large.
Image.open(sys.argv[1]).convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(sys.argv[2], optimize=True)
PY
done
