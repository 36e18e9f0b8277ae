#!/usr/bin/env bash
# Test the controller on Python 3.13 with ansible-core 2.21, Debian 13's: the tests of plugins/, and each verb on a test host.
# Without a Python 3.13 nothing is tested, and one line says so.
#   scripts/test_python313.sh [units|verbs] [pytest's arguments]
# Environment: PYTHON313 (default: python3.13 on PATH, or pyenv's), and those of scripts/setup.sh
set -euo pipefail
cd "$(dirname "$0")/.."
part=all
case "${1:-}" in units | verbs) part=$1; shift ;; esac

python=""
candidates=(python3.13 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13.*/bin/python3.13)
[ -z "${PYTHON313:-}" ] || candidates=("$PYTHON313")
for candidate in "${candidates[@]}"; do
  if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "Python 3.13: NOT TESTED, since no Python 3.13 was found here (${candidates[*]}); PYTHON313=/path/to/python3.13 names one" >&2
  exit 0
fi
environment=$(PYTHON=$python scripts/setup.sh --test-plugins)
"$environment/bin/ansible" --version | sed -nE 's/^ansible \[(.*)\]/Python 3.13 with ansible-\1/p'
case $part in
  units) exec "$environment/bin/python" -m pytest -q tests/unit/test_plugins_*.py "$@" ;;
  verbs) tests=(tests/python313) ;;
  all) tests=(tests/unit/test_plugins_*.py tests/python313) ;;
esac
scripts/setup.sh  # what starts an engine
exec scripts/with_engine.sh "$environment/bin/python" -m pytest -q "${tests[@]}" "$@"
