#!/usr/bin/env bash
# Records what the simulator says of recorded points, as results/modelled/DEVICE.jsonl.gz, for every device that has a calibration
# of its own, or those named: three minutes each on one core, no GPU. The notebook on the simulator reads it.
# Usage: scripts/record_modelled.sh MOESCOPE SNAPSHOTS [DEVICE...]
# MOESCOPE is the program, SNAPSHOTS the folder of the trained routers that the recorded rows name.
set -euo pipefail
moescope=$(realpath "$1")
snapshots=$(realpath "$2")
shift 2
cd "$(dirname "$0")/.."
devices=("$@")
if [ ${#devices[@]} -eq 0 ]; then
  for file in data/devices/*/calibration.json; do
    devices+=("$(basename "$(dirname "$file")")")
  done
fi
out=$PWD/results/modelled
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
ln -s "$moescope" "$scratch/moescope"
ln -s "$snapshots"/*.safetensors "$scratch" # rows name files as the command line does
cd "$scratch"
PATH=$scratch:$PATH

schedules=(token_centric expert_centric staircase staircase:atomics staircase:rows staircase:rows:atomics dense_masked)
routers=(snapshot:tablea_layer2.safetensors snapshot:tablea_bn_layer2.safetensors)
simulate() { # TOKENS TOP_K WORKLOAD...
  local name=$1-$2 tokens=$1 top_k=$2
  shift 2
  moescope simulate --device "$device" --preset table-a-1024-512 -L "$tokens" -K "$top_k" "${@/#/--workload=}" "${schedules[@]/#/--schedule=}" \
    --seed 1 -q --output "$name" >/dev/null
  cat "$name/rows.jsonl" >>rows
}
mkdir -p "$out"
for device in "${devices[@]}"; do
  rm -rf rows [0-9]*-*
  for shape in "1 512" "1024 4096"; do # compare-1-512.jsonl, compare-1024-4096.jsonl
    read -r tokens top_k <<<"$shape"
    simulate "$tokens" "$top_k" gaussian:1 zipf:1 hot:1,1 "${routers[@]}"
  done
  simulate 4096 512 gaussian:1 zipf:1 "${routers[0]}" # profile.jsonl, and auto-rates.jsonl as those below
  for tokens in 64 256 1024; do
    simulate "$tokens" 512 gaussian:1 zipf:1
  done
  gzip -9n <rows >"$out/$device.jsonl.gz"
  ls -l "$out/$device.jsonl.gz"
done
