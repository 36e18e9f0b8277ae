#!/bin/sh
# Builds a box for Vagrant's provider libvirt: the same machine as the container, with a kernel, on a disk that boots.
# Nothing is mounted and no loop device is used.
#
#   box.sh SUITE MIRROR OUTPUT.box        (as root)
set -eu

suite=$1
mirror=$2
output=$3
here=$(cd "$(dirname "$0")" && pwd)
megabytes=20480

[ "$(uname -m)" = x86_64 ] || { echo "box.sh: only for x86_64, and this machine is $(uname -m): name another box" >&2; exit 1; }

work=$(mktemp -d "$(dirname "$output")/.box.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 1' INT TERM

"$here/rootfs.sh" virtual "$suite" "$mirror" "$work/root"

# One partition after the first megabyte; before it, where partition tables leave room, the boot loader.
echo "I: making the disk..."
truncate -s "${megabytes}M" "$work/disk"
echo 'start=2048, type=83, bootable' | sfdisk --quiet "$work/disk"
mke2fs -q -F -t ext4 -L machine -O ^metadata_csum_seed -E offset=1048576 -d "$work/root" "$work/disk" "$((megabytes - 1))M"
rm -rf --one-file-system "$work/root"

cat >"$work/grub.cfg" <<'GRUB'
set root=(hd0,msdos1)
linux /vmlinuz root=LABEL=machine ro net.ifnames=0 console=tty0 console=ttyS0
initrd /initrd.img
boot
GRUB
grub-mkimage -O i386-pc -p / -c "$work/grub.cfg" -o "$work/core.img" biosdisk part_msdos ext2 linux
# Up to the partition table the first sector is the loader's, which expects the rest of itself in the second.
dd if=/usr/lib/grub/i386-pc/boot.img of="$work/disk" bs=440 count=1 conv=notrunc status=none
dd if="$work/core.img" of="$work/disk" bs=512 seek=1 conv=notrunc status=none

echo "I: packing the box..."
qemu-img convert -c -O qcow2 -o compression_type=zstd "$work/disk" "$work/box.img"
printf '{"provider": "libvirt", "format": "qcow2", "virtual_size": %d}\n' "$((megabytes / 1024))" >"$work/metadata.json"
# Spares Vagrant to find it out, with a dozen calls into the machine.
echo 'Vagrant.configure("2") { |config| config.vm.guest = :debian }' >"$work/Vagrantfile"
tar -C "$work" -cf "$work/box" metadata.json Vagrantfile box.img
mv "$work/box" "$output"
