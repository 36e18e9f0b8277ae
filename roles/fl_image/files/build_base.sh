#!/usr/bin/env bash
# Make the image BASE of the image DEBIAN, on the builder: install_packages.sh in a container, committed as one layer. A Dockerfile
# would put the wheels into the image, or copy the whole environment once more.
#   build_base.sh DEBIAN BASE       in the directory that holds wheels/ and install_packages.sh
set -euo pipefail
debian=$1 base=$2
name=build-${base//[:\/]/-}
exec 9>/run/lock/coldframe-build
flock 9  # another federation may be building the same one
! docker image inspect "$base" >/dev/null 2>&1 || exit 0
remove() { docker rm --force "$name" >/dev/null 2>&1 || true; }
remove  # of a build that was interrupted
trap remove EXIT
docker run --name "$name" --network none --volume "$PWD:/base:ro" "$debian" sh /base/install_packages.sh 2>&1 |
  sed -uE '/^Looking|^Requirement|^ *$/d; s#^Processing /base/wheels/([^ ]*).*#wheel \1#; s/^(Installing collected packages|Successfully installed).*/\1/'
docker commit --change 'CMD ["python3"]' "$name" "$base"
