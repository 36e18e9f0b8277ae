#!/usr/bin/env bash
# Fetch every wheel of the FL image, so that its build needs no network. Mirrors and find-links come from pip's configuration.
#   make_wheelhouse.sh PYTHON REQUIREMENTS TARGET_PYTHON(3.11) ARCH(x86_64|aarch64) TORCH_INDEX|"" OUT_DIR
# What the lock file beside REQUIREMENTS names must have one of the hashes there. Other requirements (torch, torchvision: each
# index has its own builds), and what these alone need, are pinned by version.
set -euo pipefail
python=$1 requirements=$2 target=$3 arch=$4 torch_index=$5 out=$6
lock=${requirements%.txt}.lock
mkdir -p "$(dirname "$out")"
exec 9>"$out.lock"
flock 9  # another deployment may be fetching the same ones
[ ! -e "$out/requirements.txt" ] || exit 0
mkdir -p "$out.part/unlocked"
# Wheels of the image's Python and architecture, whatever the controller's are.
platform=()
for glibc in 2_36 2_35 2_34 2_31 2_28 2_27 2_26 2_24 2_17; do platform+=(--platform "manylinux_${glibc}_$arch"); done
platform+=(--platform "manylinux2014_$arch" --platform "linux_$arch" --python-version "$target" --implementation cp --only-binary=:all:)
download() {
  "$python" -m pip download --disable-pip-version-check --progress-bar off "${platform[@]}" "$@" 2>&1 |
    sed -unE 's#^(Collecting|Processing) ([^ ]*/)?([^ /<>=!~]+).*#wheels: \3#p; /^ERROR/,$p'
}
locked=$(sed -nE 's/^([a-z][^ ;]*==[^ ;]+).*/\1/p' "$lock")
others=$(grep -E '^[a-z]' "$requirements" | grep -vxF "$locked" || true)
echo "wheels: $(wc -l <<<"$locked") packages with hashes, for Python $target on $arch"
download --dest "$out.part" --no-deps --require-hashes -r "$lock"
if [ -n "$others" ]; then
  printf '%s\n' "$locked" >"$out.part/unlocked/constraints.txt"
  download --dest "$out.part/unlocked" ${torch_index:+--extra-index-url "$torch_index"} --find-links "$out.part" \
    -c "$out.part/unlocked/constraints.txt" $others
  # What was fetched twice is taken from the first time: its hash was looked at.
  for wheel in "$out.part/unlocked"/*.whl; do
    [ -e "$out.part/$(basename "$wheel")" ] || mv "$wheel" "$out.part/"
  done
  echo "wheels: by version alone: $(tr '\n' ' ' <<<"$others")"
fi
rm -rf "$out.part/unlocked"
cp "$requirements" "$out.part/requirements.txt"
rm -rf "$out"
mv "$out.part" "$out"
echo "wheels: $(find "$out" -name '*.whl' | wc -l) files, $(du -sm "$out" | cut -f1) MB"
