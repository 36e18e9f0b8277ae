#!/usr/bin/env bash
# Run every linter, say each one's verdict, show the words of those that object; fails if any of them does.
#   scripts/lint.sh        VENV=DIR names another virtual environment than .venv
set -uo pipefail
cd "$(dirname "$0")/.."
venv=$(cd "${VENV:-.venv}" && pwd) || { echo "lint: there is no ${VENV:-.venv}: type make setup-dev" >&2; exit 2; }
export PATH="$venv/bin:$PATH" ANSIBLE_FORCE_COLOR=0 NO_COLOR=1
# Outside the checkout, so that a fresh clone has it too; mypy compares contents.
export MYPY_CACHE_DIR=${COLDFRAME_CACHE:-$HOME/.cache/coldframe}/mypy
mkdir -p "$MYPY_CACHE_DIR"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=()

check() { # $1: name, the rest: command
  local name=$1 started=$SECONDS
  shift
  if "$@" >"$log" 2>&1; then
    printf 'lint: %-14s ok      %3d s\n' "$name" $((SECONDS - started))
  else
    printf 'lint: %-14s FAILED  %3d s   (%s)\n' "$name" $((SECONDS - started)) "$*"
    sed 's/^/    /' "$log"
    failed+=("$name")
  fi
}

mapfile -t scripts < <(git grep -lE '^#!.*\b(ba)?sh\b' -- ':!*.md' ':!*.py')
syntax() { local script; for script in "${scripts[@]}"; do bash -n "$script" || return 1; done; }

check "ruff" ruff check .
check "ruff format" ruff format --check .
# Two plugins may bear one name (an action and its module): only their packages tell them apart.
check "mypy" flock "$MYPY_CACHE_DIR.lock" mypy --explicit-package-bases fl coldframe plugins dashboards tests/hosts scripts
check "bash -n" syntax
check "yamllint" yamllint --strict .
check "ansible-lint" ansible-lint --offline --strict

if [ ${#failed[@]} -gt 0 ]; then
  echo "lint: ${#failed[@]} of 6 failed: ${failed[*]}"
  exit 1
fi
echo "lint: all 6 passed"
