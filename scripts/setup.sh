#!/usr/bin/env bash
# Prepare the controller: the Debian packages that the verbs call, and the virtual environment .venv (a link into the cache).
#   scripts/setup.sh        what `make up` needs
#   scripts/setup.sh --dev  also linters, pytest and what makes test hosts
# Environment: COLDFRAME_CACHE (default ~/.cache/coldframe), PYTHON (default python3),
#   TORCH_INDEX: index of CPU builds of torch; default: PyTorch's own where it answers, else pip's configuration; "" = pip's configuration alone.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${COLDFRAME_CACHE:-$HOME/.cache/coldframe}
say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

dev=""
case "${1:-}" in
  --dev) dev=1 ;;
  "") ;;
  *) die "unknown argument $1: type scripts/setup.sh or scripts/setup.sh --dev" ;;
esac

terminal=""
[ ! -t 2 ] || terminal=1
as_root=""
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || die "this needs root: install sudo for $(id -un), or run it as root"
  as_root=sudo
fi

# --- Debian packages -------------------------------------------------------------------------------------------------
declare -A package_of=([rsync]=rsync [zstd]=zstd [ssh]=openssh-client [git]=git [mmdebstrap]=mmdebstrap [ip]=iproute2 [tar]=tar)
missing=()
for command in "${!package_of[@]}"; do
  command -v "$command" >/dev/null || missing+=("${package_of[$command]}")
done

python=${PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python=$candidate
      break
    fi
  done
fi
[ -n "$python" ] || { command -v apt-get >/dev/null && missing+=(python3); python=python3; }
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  missing+=(python3-venv)
fi
if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null || die "please install: ${missing[*]} (this machine has no apt-get), then run it again"
  say "Debian packages: ${missing[*]}"
  $as_root apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" ca-certificates >/dev/null
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  die "Python 3.11 or newer is needed, $python is $("$python" -V 2>&1): type PYTHON=/path/to/python3.11 make up"

# --- virtual environment ---------------------------------------------------------------------------------------------
requirements=requirements.txt
[ -n "$dev" ] && requirements=requirements-dev.txt
key=$( { cat requirements.txt scripts/setup.sh; "$python" -VV; uname -m; } | sha256sum | cut -c1-12)
venv=$cache/venvs/$key
mkdir -p "$cache/venvs"

torch_arguments=()
if [ "${TORCH_INDEX-unset}" = unset ]; then
  default_index=https://download.pytorch.org/whl/cpu
  if "$python" - "$default_index" <<'PY' 2>/dev/null
import sys, urllib.request
urllib.request.urlopen(urllib.request.Request(sys.argv[1] + "/torch/", method="HEAD"), timeout=5)
PY
  then torch_arguments=(--extra-index-url "$default_index"); fi
elif [ -n "$TORCH_INDEX" ]; then
  torch_arguments=(--extra-index-url "$TORCH_INDEX")
fi

install() { # $1: requirements file; pip's lines are shown as a count, its errors whole
  "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off ${torch_arguments[@]+"${torch_arguments[@]}"} -r "$1" 2>"$venv/pip.err" |
    awk -v terminal="$terminal" '
      /^Collecting/ { n++; if (terminal) printf "\r    %d packages looked up: %-40.40s", n, $2 }
      /^Installing collected/ { printf "%s    installing %d packages\n", terminal ? "\n" : "", n }' >&2 ||
    { cat "$venv/pip.err" >&2; die "pip could not install $1: see above; a mirror is set in pip's configuration (pip config set global.index-url URL)"; }
}

if [ ! -e "$venv/.controller" ]; then
  say "Virtual environment ($("$python" -V 2>&1)): $(grep -cE '^[a-z]' requirements.txt) requirements"
  rm -rf "$venv"
  "$python" -m venv "$venv"
  install requirements.txt
  # The ansible bundle is 50 MB of collections; these four are all that is used.
  say "Ansible collections"
  bundle=12.3.0
  "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info >= (3, 12))' || bundle=14.5.0
  "$venv/bin/python" -m pip download --disable-pip-version-check -q --no-deps --dest "$venv/bundle" "ansible==$bundle" 2>"$venv/pip.err" || { cat "$venv/pip.err" >&2; die "the ansible bundle $bundle could not be fetched"; }
  "$venv/bin/python" - "$venv"/bundle/ansible-*.whl <<'PY'
import sys, sysconfig, zipfile
wanted = tuple(f"ansible_collections/{name}/" for name in
               ("ansible/posix", "community/crypto", "community/docker", "community/library_inventory_filtering_v1"))
with zipfile.ZipFile(sys.argv[1]) as wheel:
    members = [name for name in wheel.namelist() if name.startswith(wanted)]
    wheel.extractall(sysconfig.get_path("purelib"), members)
PY
  rm -rf "$venv/bundle"
  touch "$venv/.controller"
fi
if [ -n "$dev" ]; then
  devkey=$(sha256sum requirements-dev.txt | cut -c1-12)
  if [ ! -e "$venv/.dev-$devkey" ]; then
    say "Development tools"
    install "$requirements"
    touch "$venv/.dev-$devkey"
  fi
fi
if [ -n "$dev" ] && ! command -v promtool >/dev/null && [ ! -x "$cache/tools/promtool" ]; then
  # Unpacked, not installed: the package would start a Prometheus on this machine.
  command -v apt-get >/dev/null || die "please install promtool (this machine has no apt-get), then run it again"
  say "promtool"
  unpacked=$(mktemp -d)
  fetch() { (cd "$unpacked" && { apt-get download -q promtool || apt-get download -q prometheus; } && dpkg-deb -x ./*.deb .) >"$venv/apt.log" 2>&1; }
  fetch || { $as_root apt-get update -qq && fetch; } || { cat "$venv/apt.log" >&2; die "the Debian package with promtool could not be fetched: see above"; }
  mkdir -p "$cache/tools"
  mv "$unpacked/usr/bin/promtool" "$cache/tools/promtool"
  rm -rf "$unpacked"
fi
[ "$(readlink .venv 2>/dev/null)" = "$venv" ] || { rm -rf .venv; ln -s "$venv" .venv; }
