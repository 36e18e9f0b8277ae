#!/usr/bin/env bash
# Run commands at once, and fail if one of them does. Their lines come mixed, so each must say what it is about.
#   at_once.sh COMMAND...
set -uo pipefail
jobs=() failed=0
for command in "$@"; do bash -c "$command" & jobs+=($!); done
for job in "${jobs[@]}"; do wait "$job" || failed=$?; done
exit "$failed"
