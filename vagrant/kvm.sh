#!/bin/sh
# Whether KVM helps virtual machines here. The device may be there and yet be of no use: closed to libvirt's machines,
# or slower than none (where this machine is virtual itself and every exit is emulated). A machine that ends at once tells.
set -eu

[ -w /dev/kvm ] || exit 1
# Libvirt's machines run as a user of their own, which is in the group kvm.
case "$(stat --format '%A %G' /dev/kvm)" in
    c??????rw?* | c???rw*" kvm") ;;
    *) exit 1 ;;
esac
if [ "$(uname -m)" != x86_64 ] || ! command -v qemu-system-x86_64 >/dev/null; then
    exit 0
fi
sector=$(mktemp)
trap 'rm -f "$sector"' EXIT
# mov al, 0x10; out 0xf4, al; hlt; up to the mark of a boot sector. Qemu then ends with 0x10 * 2 + 1.
{ printf '\260\020\346\364\364'; head -c 505 /dev/zero; printf '\125\252'; } >"$sector"

boots() { # $1: kvm or tcg (none), $2: seconds that it may take
    code=0
    timeout --kill-after=1 "$2" qemu-system-x86_64 -accel "$1" -nodefaults -display none \
        -device isa-debug-exit,iobase=0xf4,iosize=4 -drive "format=raw,file=$sector" 2>/dev/null || code=$?
    [ "$code" = 33 ]
}

# A busy machine slows down both: with KVM it may take five times as long as without.
begin=$(date +%s%N)
boots tcg 30 || exit 0
milliseconds=$((($(date +%s%N) - begin) / 200000))
boots kvm "$((milliseconds / 1000)).$(printf %03d $((milliseconds % 1000)))"
