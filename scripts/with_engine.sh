#!/usr/bin/env bash
# Run a command with a Docker engine on this machine; an engine that had to be started is stopped again afterwards.
#   scripts/with_engine.sh COMMAND...
set -euo pipefail
cd "$(dirname "$0")/.."
as_root=""
[ "$(id -u)" = 0 ] || as_root=sudo
answers() { $as_root docker version >/dev/null 2>&1; }

stop_engine() {
  if [ -d /run/systemd/system ]; then
    $as_root systemctl stop docker.service docker.socket
  elif [ -s /var/run/docker.pid ]; then
    pid=$(cat /var/run/docker.pid)
    $as_root kill "$pid"
    for _ in $(seq 60); do [ -d "/proc/$pid" ] || break; sleep 0.5; done
  fi
}

if ! answers; then
  trap stop_engine EXIT
  trap : TERM  # not before the command has removed what it made: who ends it sends the signal to the group
  .venv/bin/ansible-playbook playbooks/engine.yml
fi
"$@"
