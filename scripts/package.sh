#!/usr/bin/env bash
# Installs what was built into a folder of its own, builds a project elsewhere against it, and packs a .deb.
# Usage: scripts/package.sh [BUILD]    (default build/cpu; the .deb lies there)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup_packaging
build=$(realpath "${1:-build/cpu}")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cmake --install "$build" --prefix "$scratch/usr" >"$scratch/install.log"
# The program finds its data beside itself: a device that is nowhere else.
some=$(dirname "$(ls data/devices/*/calibration.json | head -1)")
cp -r "$some" "$scratch/usr/share/moescope/data/devices/only-here"
(cd "$scratch" && env -i PATH=/usr/bin:/bin "$scratch/usr/bin/moescope" simulate --preset tiny --device only-here -q >/dev/null)
cmake -S tests/package -B "$scratch/consumer" -G Ninja -DCMAKE_PREFIX_PATH="$scratch/usr" >"$scratch/configure.log"
cmake --build "$scratch/consumer" >"$scratch/build.log" || { cat "$scratch/build.log" >&2; exit 1; }
"$scratch/consumer/consumer"
"$scratch/consumer/c_consumer"
"$scratch/consumer/pkg_config_consumer"
# What the C library gives away: the functions of moescope.h and nothing else.
library=$(find "$scratch/usr" -name libmoescope.so)
exported=$(nm -D --defined-only "$library" | awk '$2 != "A" {sub(/@.*/, "", $3); print $3}' | sort)
declared=$(grep -oE 'moescope_[a-z_]+\(' "$scratch/usr/include/moescope.h" | tr -d '(' | sort -u)
for name in $exported; do
  grep -qx "$name" <<<"$declared" || { echo "libmoescope exports $name, which moescope.h does not declare" >&2; exit 1; }
done
(cd "$build" && cpack -G DEB >"$scratch/cpack.log") || { cat "$scratch/cpack.log" >&2; exit 1; }
deb=$(ls -t "$build"/moescope_*.deb | head -1)
dpkg-deb --info "$deb" | grep -E 'Package|Version|Depends|Installed-Size'
dpkg-deb --contents "$deb" | grep -E 'bin/moescope|moescopeConfig.cmake|small_layer2|moescope.1' | awk '{print $6}'
