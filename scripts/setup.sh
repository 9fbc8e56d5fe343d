#!/usr/bin/env bash
# Installs the Debian packages the build needs and are missing; says what and why. Where that cannot be (another
# system, no root) it says what is missing and how to get it, and the build goes on with what is there.
# Sourced by run.sh and test.sh. Usage: setup_packages "reason" package...
set -euo pipefail

# Of another system: programs that are not there. Libraries are found, or named, by cmake.
setup_elsewhere() {
  local missing=() program
  for program in c++ cmake ninja pkg-config; do
    command -v "$program" >/dev/null || missing+=("$program")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  cat >&2 <<TEXT
moescope: missing: ${missing[*]}; this is no Debian, so nothing is installed here.
  Needed: a C++20 compiler (GCC 12 or later), CMake 3.25, Ninja, pkg-config; Eigen 3.4, CLI11 2.1, fmt 9, nlohmann-json 3.11,
  libzip, zlib; gnuplot for figures, Chart.js (chart.umd.js of npm's chart.js) for those of reports.
  Fedora: dnf install gcc-c++ cmake ninja-build pkgconf eigen3-devel cli11-devel fmt-devel json-devel libzip-devel gnuplot
  Arch:   pacman -S gcc cmake ninja pkgconf eigen cli11 fmt nlohmann-json libzip gnuplot
  Conda:  conda install -c conda-forge cxx-compiler cmake ninja pkg-config eigen cli11 fmt nlohmann_json libzip zlib gnuplot
TEXT
  return 1
}

setup_packages() {
  local reason=$1 missing=() package
  shift
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    setup_elsewhere
    return
  fi
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
      # They may be there in another way, by conda or by hand: whether that is enough, cmake says.
      cat >&2 <<TEXT
moescope: not installed as packages: ${missing[*]} (${reason}); no root here. Going on with what is there.
  With root: apt-get install ${missing[*]}
  Without:   conda install -c conda-forge cxx-compiler cmake ninja pkg-config eigen cli11 fmt nlohmann_json libzip zlib gnuplot
TEXT
      return 0
    fi
    as_root=(sudo)
  fi
  echo "moescope: installing ${missing[*]} (${reason})"
  if [ -z "${MOESCOPE_APT_UPDATED:-}" ]; then
    "${as_root[@]}" apt-get update -qq
    export MOESCOPE_APT_UPDATED=1
  fi
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

setup_build() {
  setup_packages "compiler, build system and libraries" \
    g++ cmake ninja-build pkg-config git ca-certificates libeigen3-dev libcli11-dev libfmt-dev nlohmann-json3-dev libzip-dev zlib1g-dev
  setup_packages "figures" gnuplot-nox libjs-chart.js
}

# setup_venv FOLDER PINS: a Python environment with just what PINS lists, by hash; as it is when it was made of the same PINS.
setup_venv() {
  local venv=$1 pins=$2
  cmp -s "$pins" "$venv/requirements.txt" && return 0
  echo "moescope: installing the packages of $pins into $venv"
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$pins"
  cp "$pins" "$venv/requirements.txt" # only now: an interrupted installation starts again
}

setup_tests() {
  setup_packages "tests and benchmarks" libgtest-dev libbenchmark-dev python3
}

setup_ci() {
  setup_packages "format and a compiler cache" clang-format ccache
}

setup_packaging() {
  setup_packages "Debian packages" file dpkg-dev
}

setup_sanitizers() {
  setup_packages "sanitizers and fuzzing" clang libclang-rt-14-dev libomp-dev
}
