#!/bin/sh
# What a machine needs to be Vagrant's virtual machine: a disk, networks, and the key that Vagrant replaces at its first start.
set -eu

root=$1

echo 'LABEL=machine / ext4 errors=remount-ro 0 1' >"$root/etc/fstab"

# The first network is Vagrant's own; the second it sets up itself.
cat >"$root/etc/systemd/network/80-first.network" <<'NETWORK'
[Match]
Name=eth0
[Network]
DHCP=yes
[DHCPv4]
# The machines are told apart by their cards: a copied disk has a copied identity.
ClientIdentifier=mac
NETWORK
chroot "$root" systemctl enable systemd-networkd.service systemd-resolved.service
# Nothing here waits for networks, and one without an address would hold up the start.
chroot "$root" systemctl mask systemd-networkd-wait-online.service
ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"

# Known to everybody, and meant to be.
key='ssh-rsa AAAAB3NzaC1yc2EAAAABIwAAAQEA6NF8iallvQVp22WDkTkyrtvp9eWW6A8YVr+kz4TjGYe7gHzIw+niNltGEFHzD8+v1I2YJ6oXevct1YeS0o9HZyN1Q9qgCgzUFtdOKLv6IedplqoPkcmF0aYet2PkEDo3MlTBckFXPITAMzF8dJSIFo9D8HfdOV0IAdx4O7PtixWKn5y2hMNG0zQPyUecp4pzC6kivAIhyfHilFR61RGL+GPXQ2MWZWFYbAGjyiYJnAmCP3NOTd0jMZEnDkbUvxhMmBYSdETk1rRgm+R4LOzFUGaHqHDLKLX+FIPKcF96hrucXzcWyLbIbEgE98OHlnVYCzRdK8jlqm8tehUc9c9WhQ== vagrant insecure public key'
chroot "$root" install -d -m 0700 -o vagrant -g vagrant /home/vagrant/.ssh
echo "$key" >"$root/home/vagrant/.ssh/authorized_keys"
chroot "$root" chown vagrant:vagrant /home/vagrant/.ssh/authorized_keys
chmod 0600 "$root/home/vagrant/.ssh/authorized_keys"
