#!/bin/sh
# What a machine needs to be a container: a first process that mends what is missing, and none of the units that must not run.
set -eu

root=$1

install -m 0755 "$(dirname "$0")/init" "$root/usr/local/sbin/machine-init"

# logind stays: `reboot` needs it.
chroot "$root" systemctl mask \
    systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udev-trigger.service \
    getty.target console-getty.service getty@.service serial-getty@.service \
    systemd-timesyncd.service \
    systemd-networkd-wait-online.service sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount

# Under control groups v2 a group that holds processes cannot hand a controller down, and `docker exec` puts a process into
# the machine's top group. So systemd hands them to system.slice at its start, not when a container first needs them.
install -d -m 0755 "$root/etc/systemd/system/system.slice.d"
cat >"$root/etc/systemd/system/system.slice.d/controllers.conf" <<'SLICE'
[Slice]
CPUWeight=100
IOWeight=100
MemoryAccounting=yes
TasksAccounting=yes
SLICE
