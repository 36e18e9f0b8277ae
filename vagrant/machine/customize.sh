#!/bin/sh
# Turns a fresh Debian tree into a machine: users, sshd, and an engine that waits for its role.
set -eu

root=$1

# Users as on a real machine: no password, sudo for everything.
for user in gardener vagrant; do
    chroot "$root" useradd --create-home --shell /bin/bash "$user"
    printf '%s ALL=(ALL) NOPASSWD: ALL\n' "$user" >"$root/etc/sudoers.d/$user"
    chmod 0440 "$root/etc/sudoers.d/$user"
done

# Ansible opens many sessions at once; reverse look-ups would cost seconds where no resolver answers.
cat >"$root/etc/ssh/sshd_config.d/machine.conf" <<'SSHD'
PermitRootLogin prohibit-password
PasswordAuthentication no
UseDNS no
MaxStartups 200
MaxSessions 200
SSHD
chroot "$root" ssh-keygen -q -A
chroot "$root" systemctl enable ssh.service

chroot "$root" systemctl disable docker.service docker.socket containerd.service
chroot "$root" systemctl set-default multi-user.target
chroot "$root" systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer systemd-firstboot.service

# Every machine gets an identity of its own at its first boot.
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id" "$root/etc/hostname" "$root/etc/resolv.conf"
