#!/bin/sh
# Prints the arguments, one per line, with which `docker run` makes a machine of the image: systemd and an engine of its own.
set -eu

# Not `--privileged`: where this machine's root itself lacks a capability, that fails.
# `unless-stopped`, so that `reboot` inside comes back.
cat <<'ARGUMENTS'
--cgroupns=private
--cap-add=ALL
--security-opt=seccomp=unconfined
--security-opt=apparmor=unconfined
--security-opt=systempaths=unconfined
--device-cgroup-rule=a *:* rwm
--tmpfs=/run:exec
--tmpfs=/run/lock
--tmpfs=/tmp:exec
--stop-signal=SIGRTMIN+3
--restart=unless-stopped
ARGUMENTS

# Where root lacks CAP_SYS_RESOURCE (bit 24), an engine before 23 has to be told; one since knows, and refuses to drop it.
bounding=$(sed -n 's/^CapBnd:[[:space:]]*//p' /proc/self/status)
if [ $((0x$bounding >> 24 & 1)) = 0 ]; then
    # shellcheck disable=SC2086  # DOCKER may be more than one word, such as sudo docker
    major=$(${DOCKER:-docker} version --format '{{.Server.Version}}' 2>/dev/null | cut -d. -f1)
    [ "${major:-0}" -ge 23 ] || echo --cap-drop=SYS_RESOURCE
fi
