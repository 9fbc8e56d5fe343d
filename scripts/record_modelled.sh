#!/usr/bin/env bash
# Records what the simulator says of the points that results/h100 has measurements of, as results/modelled/h100-sxm.jsonl.gz:
# three minutes on one core, no GPU. The notebook on the simulator reads it.
# Usage: scripts/record_modelled.sh MOESCOPE SNAPSHOTS
# MOESCOPE is the program, SNAPSHOTS the folder of the trained routers that the recorded rows name.
set -euo pipefail
moescope=$(realpath "$1")
snapshots=$(realpath "$2")
cd "$(dirname "$0")/.."
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
  moescope simulate --preset table-a-1024-512 -L "$tokens" -K "$top_k" "${@/#/--workload=}" "${schedules[@]/#/--schedule=}" \
    --seed 1 -q --output "$name" >/dev/null
  cat "$name/rows.jsonl" >>rows
}
for shape in "1 512" "1024 4096"; do # compare-1-512.jsonl, compare-1024-4096.jsonl
  read -r tokens top_k <<<"$shape"
  simulate "$tokens" "$top_k" gaussian:1 zipf:1 hot:1,1 "${routers[@]}"
done
simulate 4096 512 gaussian:1 zipf:1 "${routers[0]}" # profile.jsonl, and auto-rates.jsonl as those below
for tokens in 64 256 1024; do
  simulate "$tokens" 512 gaussian:1 zipf:1
done
mkdir -p "$out"
gzip -9n <rows >"$out/h100-sxm.jsonl.gz"
ls -l "$out/h100-sxm.jsonl.gz"
