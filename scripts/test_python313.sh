#!/usr/bin/env bash
# Run the tests of plugins/ on Python 3.13 with ansible-core 2.21, where a Python 3.13 is installed; all but those of our
# logic alone that start Ansible once more (marker one_python).
#   scripts/test_python313.sh [pytest's arguments]
# Environment: PYTHON313 (scripts/python313.sh), and those of scripts/setup.sh
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(scripts/python313.sh)
[ -n "$python" ] || exit 0
environment=$(PYTHON=$python scripts/setup.sh --test-plugins)
"$environment/bin/ansible" --version | sed -nE 's/^ansible \[(.*)\]/Python 3.13 with ansible-\1/p'
PYTHONPATH=$PWD exec "$environment/bin/python" -m pytest -q -m "not one_python" tests/unit/test_plugins_*.py "$@"
