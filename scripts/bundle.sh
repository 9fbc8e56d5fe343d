#!/usr/bin/env bash
# Copies programs and the shared libraries they need (all but glibc's, the compiler's and CUDA's) into one folder, so
# that they run on a machine that has a GPU, a driver and the CUDA toolkit but not this one's packages.
# Devices' folders (data/devices) go along: schedule auto reads its rates there.
# Usage: scripts/bundle.sh OUT PROGRAM...
set -euo pipefail
out=$1
shift
mkdir -p "$out/lib" "$out/data"
cp -r "$(dirname "$0")/../data/devices" "$(dirname "$0")/../data/clusters" "$out/data/"
for program in "$@"; do
  install -m 755 -s "$program" "$out/"
  { ldd "$program" || true; } | awk '$3 ~ /\/lib(fmt|benchmark|zip|crypto|z|bz2)\.so/ {print $3}' | while read -r library; do
    cp -Lu "$library" "$out/lib/"
  done
done
