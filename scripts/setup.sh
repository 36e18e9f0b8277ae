#!/usr/bin/env bash
# Prepare the controller: the Debian packages that the verbs call, and the virtual environment .venv.
#   scripts/setup.sh                  what the verbs need
#   scripts/setup.sh --dev            also torch, linters, pytest and what makes test hosts
#   scripts/setup.sh --test-plugins   all but torch, for the tests of plugins/, beside .venv: prints the environment's path
# Environment: COLDFRAME_CACHE (default ~/.cache/coldframe), PYTHON (default python3),
#   TORCH_INDEX (for --dev): index of CPU builds of torch; default: PyTorch's own where it answers, else pip's configuration; "" = pip's configuration alone.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${COLDFRAME_CACHE:-$HOME/.cache/coldframe}
say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

case "${1:-}" in
  --dev | --test-plugins) mode=${1#--} ;;
  "") mode="" ;;
  *) die "unknown argument $1: type scripts/setup.sh, scripts/setup.sh --dev or scripts/setup.sh --test-plugins" ;;
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
[ -z "$python" ] || command -v "$python" >/dev/null || die "there is no $python: set PYTHON to a Python 3.11 or newer, or leave it out"
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
# One for each set of packages, in the cache; .venv is a thin one over it (scripts/checkout_venv.py). --dev has all that the verbs need, so a checkout that has it keeps it.
key=$( { cat requirements.txt collections/bundle.txt scripts/setup.sh; "$python" -VV; uname -m; } | sha256sum | cut -c1-12)
devkey=$(sha256sum requirements-dev.txt | cut -c1-12)
venv=$cache/venvs/$key${mode:+-$mode}
if [ -z "$mode" ] && [ "$(head -n 1 .venv/.checkout 2>/dev/null)" = "$venv-dev" ] && [ -e "$venv-dev/.controller" ]; then
  exec "$venv-dev/bin/python" scripts/checkout_venv.py
fi
mkdir -p "$cache/venvs"
exec 9>"$venv.lock"
flock 9  # another checkout may be making the same one

pip_install() { # pip's lines are shown as a count, its errors whole; bytecode is made when a module is first imported
  "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off --no-compile "$@" 2>"$venv/pip.err" |
    awk -v terminal="$terminal" '
      /^Collecting/ { n++; if (terminal) printf "\r    %d packages looked up: %-40.40s", n, $2 }
      /^Installing collected/ { printf "%s    installing %d packages\n", terminal ? "\n" : "", NF - 3 }' >&2 ||
    { cat "$venv/pip.err" >&2; die "pip could not install these packages: see above; a mirror is set in pip's configuration (pip config set global.index-url URL)"; }
}

if [ ! -e "$venv/.controller" ]; then
  say "Virtual environment ($("$python" -V 2>&1))"
  rm -rf "$venv"
  "$python" -m venv "$venv"
  sed '/^# --- training/,$d' requirements.txt >"$venv/controller.txt"
  pip_install --quiet --constraint requirements.txt pip  # takes a third of the time of the one that Python 3.11 brings
  pip_install -r "$venv/controller.txt"
  # The ansible bundle is 50 MB of collections; these four are all that is used.
  say "Ansible collections"
  "$venv/bin/python" -m pip download --disable-pip-version-check -q --no-deps --require-hashes --only-binary=:all: --dest "$venv/bundle" -r collections/bundle.txt 2>"$venv/pip.err" ||
    { cat "$venv/pip.err" >&2; die "the bundle of Ansible's collections could not be fetched, or is another than collections/bundle.txt says: see above"; }
  "$venv/bin/python" - "$venv"/bundle/ansible-*.whl <<'PY'
import sys, sysconfig, zipfile
wanted = tuple(f"ansible_collections/{name}/" for name in
               ("ansible/posix", "community/crypto", "community/docker", "community/library_inventory_filtering_v1"))
with zipfile.ZipFile(sys.argv[1]) as wheel:
    wheel.extractall(sysconfig.get_path("purelib"), [name for name in wheel.namelist() if name.startswith(wanted)])
PY
  # Where the controller is a machine too, modules import these as root: their bytecode must not become root's.
  (cd "$venv"/lib/python3*/site-packages &&
    "$venv/bin/python" -m compileall -q -j 0 ansible certifi cffi charset_normalizer cryptography idna packaging requests urllib3 yaml) ||
    die "the packages in $venv cannot be compiled: see above"
  rm -rf "$venv/bundle"
  touch "$venv/.controller"
fi

if [ "$mode" = dev ] && [ ! -e "$venv/.dev-$devkey" ]; then
  say "torch and development tools"
  index=(${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"})
  if [ "${TORCH_INDEX-unset}" = unset ]; then
    default_index=https://download.pytorch.org/whl/cpu
    "$python" - "$default_index" <<'PY' 2>/dev/null && index=(--extra-index-url "$default_index")
import sys, urllib.request
urllib.request.urlopen(urllib.request.Request(sys.argv[1] + "/torch/", method="HEAD"), timeout=5)
PY
  fi
  pip_install ${index[@]+"${index[@]}"} -r requirements-dev.txt
  touch "$venv/.dev-$devkey"
fi
if [ "$mode" = test-plugins ] && [ ! -e "$venv/.dev-$devkey" ]; then
  say "Development tools"
  cat requirements.txt requirements-dev.txt | grep -vE '^(torch|-r)' >"$venv/tools.txt"
  pip_install -r "$venv/tools.txt"
  touch "$venv/.dev-$devkey"
fi
if [ "$mode" = dev ] && ! command -v promtool >/dev/null && [ ! -x "$cache/tools/promtool" ]; then
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
if [ "$mode" = test-plugins ]; then
  echo "$venv"
  exit 0
fi
"$venv/bin/python" scripts/checkout_venv.py
