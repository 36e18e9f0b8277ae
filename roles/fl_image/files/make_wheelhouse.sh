#!/usr/bin/env bash
# Fetch every wheel of the FL image, and the controller's pip, so that its build needs no network. Mirrors and find-links come
# from pip's configuration.
#   make_wheelhouse.sh PYTHON REQUIREMENTS TARGET_PYTHON(3.11) ARCH(x86_64|aarch64) TORCH_INDEX|"" OUT_DIR
set -euo pipefail
python=$1 requirements=$2 target=$3 arch=$4 torch_index=$5 out=$6
mkdir -p "$(dirname "$out")"
exec 9>"$out.lock"
flock 9  # another deployment may be fetching the same ones
[ ! -e "$out/requirements.txt" ] || exit 0
mkdir -p "$out.part"
rm -f "$out.part"/pip-*.whl  # of an interrupted download with another pip
extra=()
[ -z "$torch_index" ] || extra=(--extra-index-url "$torch_index")
# Wheels of the image's Python and architecture, whatever the controller's are.
for glibc in 2_36 2_35 2_34 2_31 2_28 2_27 2_26 2_24 2_17; do extra+=(--platform "manylinux_${glibc}_$arch"); done
extra+=(--platform "manylinux2014_$arch" --platform "linux_$arch" --python-version "$target" --implementation cp --only-binary=:all:)
pip=$("$python" -m pip --version | cut -d' ' -f2)
total=$(grep -cE '^[a-z]' "$requirements")
echo "wheels: $total requirements and what they need, for Python $target on $arch"
"$python" -m pip download --disable-pip-version-check --progress-bar off --dest "$out.part" "${extra[@]}" -r "$requirements" "pip==$pip" 2>&1 |
  sed -unE 's#^(Collecting|Processing) ([^ ]*/)?([^ /<>=!~]+).*#wheels: \3#p; /^ERROR/p'
cp "$requirements" "$out.part/requirements.txt"
rm -rf "$out"
mv "$out.part" "$out"
echo "wheels: $(find "$out" -name '*.whl' | wc -l) files, $(du -sm "$out" | cut -f1) MB"
