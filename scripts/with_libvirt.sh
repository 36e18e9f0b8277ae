#!/usr/bin/env bash
# Run a command with libvirt on this machine; daemons that had to be started are ended again afterwards.
#   scripts/with_libvirt.sh COMMAND...
set -euo pipefail
cd "$(dirname "$0")/.."
as_root=""
[ "$(id -u)" = 0 ] || as_root=sudo
answers() { $as_root virsh --connect qemu:///system version >/dev/null 2>&1; }

started=()
stop_daemons() {
  local daemon pid
  for daemon in ${started[@]+"${started[@]}"}; do
    pid=$(cat "/run/$daemon.pid") || continue
    $as_root kill "$pid"
    for _ in $(seq 60); do [ -d "/proc/$pid" ] || break; sleep 0.5; done
  done
}
stop_services() { $as_root systemctl stop 'libvirtd*.socket' libvirtd.service; }

if ! answers; then
  if [ -d /run/systemd/system ]; then
    trap stop_services EXIT
    $as_root systemctl start libvirtd.service
  else
    # No service manager to start them. The first writes down what the machines say.
    trap stop_daemons EXIT
    for daemon in virtlogd libvirtd; do
      $as_root "/usr/sbin/$daemon" --daemon
      started=("$daemon" ${started[@]+"${started[@]}"})
    done
  fi
  for _ in $(seq 60); do ! answers || break; sleep 0.5; done
  answers || { echo "with_libvirt: virsh --connect qemu:///system version gets no answer: see what it says" >&2; exit 1; }
fi
"$@"
