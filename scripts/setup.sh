#!/usr/bin/env bash
# Installs the Debian packages the build needs and are missing; says what and why. Sourced by run.sh and test.sh.
# Usage: setup_packages "reason" package...
set -euo pipefail

setup_packages() {
  local reason=$1 missing=() package
  shift
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  echo "moescope: installing ${missing[*]} (${reason})"
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "moescope: need root or sudo to install: ${missing[*]}" >&2; return 1; }
    as_root=(sudo)
  fi
  if [ -z "${MOESCOPE_APT_UPDATED:-}" ]; then
    "${as_root[@]}" apt-get update -qq
    export MOESCOPE_APT_UPDATED=1
  fi
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

setup_build() {
  setup_packages "compiler, build system and libraries" \
    g++ cmake ninja-build pkg-config git ca-certificates libeigen3-dev libcli11-dev libfmt-dev nlohmann-json3-dev libminizip-dev zlib1g-dev
  setup_packages "figures" gnuplot-nox
}

setup_tests() {
  setup_packages "tests and benchmarks" libgtest-dev libbenchmark-dev python3
}

setup_ci() {
  setup_packages "format and a compiler cache" clang-format ccache
}

setup_fuzz() {
  setup_packages "fuzzing" clang libclang-rt-14-dev libomp-dev
}
