#!/usr/bin/env bash
# Records what the simulator says of the points that results/h100 has measurements of, as results/modelled/h100-sxm.jsonl.gz:
# a minute or two on two cores, no GPU. The notebook on the simulator reads it.
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

# staircase:atomics is no schedule of its own to the simulator.
schedules=(token_centric expert_centric staircase dense_masked)
routers=(snapshot:tablea_layer2.safetensors snapshot:tablea_bn_layer2.safetensors)
simulate() { # NAME, then options
  local name=$1
  shift
  moescope simulate "$@" "${schedules[@]/#/--schedule=}" --seed 1 -q --output "$name" >/dev/null
  cat "$name/rows.jsonl" >>rows
}
simulate 4096-512 --preset table-a-4096-512 --workload gaussian:1 --workload "${routers[0]}"
for shape in "1 512" "1024 4096"; do
  read -r tokens top_k <<<"$shape"
  simulate "$tokens-$top_k" --preset table-a-1024-512 -L "$tokens" -K "$top_k" --workload gaussian:1 --workload zipf:1 \
    --workload hot:1,1 "${routers[@]/#/--workload=}"
done
mkdir -p "$out"
gzip -9n <rows >"$out/h100-sxm.jsonl.gz"
ls -l "$out/h100-sxm.jsonl.gz"
