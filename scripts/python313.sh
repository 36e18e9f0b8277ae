#!/usr/bin/env bash
# Print the path of a Python 3.13, Debian 13's; where there is none, nothing but a line to standard error.
#   scripts/python313.sh
# Environment: PYTHON313 (default: python3.13 on PATH, or pyenv's)
set -euo pipefail
candidates=(python3.13 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13.*/bin/python3.13)
[ -z "${PYTHON313:-}" ] || candidates=("$PYTHON313")
for candidate in "${candidates[@]}"; do
  if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))' 2>/dev/null; then
    command -v "$candidate"
    exit 0
  fi
done
echo "Python 3.13: NOT TESTED, since no Python 3.13 was found here (${candidates[*]}); PYTHON313=/path/to/python3.13 names one" >&2
