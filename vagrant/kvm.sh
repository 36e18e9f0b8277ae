#!/bin/sh
# Whether KVM helps virtual machines here. The device may be there and yet be slower than none (where this machine is
# virtual itself and every exit is emulated): a machine that ends at once, within seconds, tells.
set -eu

[ -w /dev/kvm ] || exit 1
if [ "$(uname -m)" != x86_64 ] || ! command -v qemu-system-x86_64 >/dev/null; then
    exit 0
fi
sector=$(mktemp)
trap 'rm -f "$sector"' EXIT
# mov al, 0x10; out 0xf4, al; hlt; up to the mark of a boot sector. Qemu then ends with 0x10 * 2 + 1.
{ printf '\260\020\346\364\364'; head -c 505 /dev/zero; printf '\125\252'; } >"$sector"
code=0
timeout --kill-after=1 3 qemu-system-x86_64 -accel kvm -nodefaults -display none \
    -device isa-debug-exit,iobase=0xf4,iosize=4 -drive "format=raw,file=$sector" 2>/dev/null || code=$?
[ "$code" = 33 ]
