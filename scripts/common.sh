# Shared by the scripts of this folder; sourced, not run. Works on a bare Debian 12, as root or with sudo.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$top"

say() { printf '\033[1m== %s\033[0m\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else die "packages are missing and neither root nor sudo is at hand; install them: $*"
  fi
}

# Installs what scripts/packages.txt lists, and the packages named, that dpkg does not have; nothing to do costs well under a
# second.
install_packages() {
  local wanted missing=()
  wanted=$(grep -v '^#' scripts/packages.txt)
  for package in $wanted "$@"; do
    dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  say "installing ${#missing[@]} packages: ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# build PRESET [target…]: configures once and builds.
build() {
  local preset=$1 launcher=()
  shift
  # A cache, where there is one, is shared by all clones: paths count from the top of each.
  export CCACHE_BASEDIR=$top CCACHE_NOHASHDIR=1
  if command -v ccache >/dev/null; then launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_C_COMPILER_LAUNCHER=ccache); fi
  [ -z "${BUILD_CUDA:-}" ] || launcher+=("-DMUSTER_CUDA=$BUILD_CUDA")
  cmake --preset "$preset" "${launcher[@]}" >"build.$preset.log" 2>&1 || { cat "build.$preset.log"; die "configuring preset $preset failed"; }
  grep -E '^-- (Muster|CUDA|.* not )' "build.$preset.log" || true
  rm -f "build.$preset.log"
  cmake --build --preset "$preset" -j"$(nproc)" ${1:+--target "$@"}
}
