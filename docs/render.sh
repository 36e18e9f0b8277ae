#!/usr/bin/env bash
# Make docs/img/architecture.svg of docs/architecture.dot; a test holds that they belong together.
# Needs graphviz: sudo apt-get install graphviz
set -euo pipefail
cd "$(dirname "$0")"
digest=$(sha256sum architecture.dot | cut -d' ' -f1)
dot -Tsvg architecture.dot | sed "s|^<svg |<!-- sha256 of architecture.dot: $digest -->\n<svg |" >img/architecture.svg
