#!/bin/sh
# Gives the engine of a machine the images of /seed, before each of its starts: layers by reference, the rest as a copy.
# Not its networks: they may be those of the machine's own interfaces, and ssh would get no answer.
set -eu
cd /var/lib/docker

[ -d overlay2 ] || tar -C /seed -c --anchored --no-wildcards-match-slash --exclude './overlay2/*/diff' --exclude ./engine-id --exclude ./network . | tar -x
for layer in /seed/overlay2/*/diff; do
    here=${layer#/seed/}
    mkdir -p "$here"
    # An engine that stops unmounts whatever lies below its directory.
    mountpoint -q "$here" || mount --bind -o ro "$layer" "$here"
done
