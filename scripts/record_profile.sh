#!/usr/bin/env bash
# Records everything that docs and tests say of the profiler, on a machine with a GPU, in about two minutes:
#   ceilings.jsonl, profile.jsonl, counter_truth.jsonl (counters held against kernels of known work),
#   overhead_with.jsonl and overhead_without.jsonl, profile.txt (the tables) and trace.json.gz
# Usage: scripts/record_profile.sh BUNDLE OUT [SNAPSHOT]
# BUNDLE holds `moescope` (scripts/bundle.sh) and, for overhead_*.jsonl, `moescope_without_cupti`: the same revision
# configured with -DMOESCOPE_CUPTI=OFF. SNAPSHOT: a trained router of Table A's shape (safetensors); without one only
# Gaussian routing is profiled. Afterwards, anywhere:
#   cp OUT/*.jsonl results/NAME/ && moescope roofline results/NAME/profile.jsonl --output docs
set -euo pipefail
mkdir -p "$2"
bundle=$(realpath "$1")
out=$(realpath "$2")
snapshot=${3:+$(realpath "$3")}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
moescope=$bundle/moescope
export LD_LIBRARY_PATH=$bundle/lib:/usr/local/cuda/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
cd "$scratch" # rows name files as the command line does

"$moescope" ceilings --backend cuda --output ceilings
cp ceilings/rows.jsonl "$out/ceilings.jsonl"

"$moescope" counters --check --output counters || echo "counters --check: exit code $?"
cp counters/rows.jsonl "$out/counter_truth.jsonl"

workloads=(--workload gaussian:1)
if [ -n "$snapshot" ]; then
  ln -s "$snapshot" .
  workloads+=(--workload "snapshot:$(basename "$snapshot")")
fi
begin=$SECONDS
schedules=(token_centric expert_centric staircase staircase:atomics dense_masked sparse_library)
"$moescope" profile --backend cuda --preset table-a-4096-512 "${workloads[@]}" "${schedules[@]/#/--schedule=}" --seed 1 -q \
  --ceilings ceilings/rows.jsonl --output profile | tee "$out/profile.txt" || echo "profile: exit code $?"
echo "profile of all schedules: $((SECONDS - begin)) s" | tee -a "$out/profile.txt"
cp profile/rows.jsonl "$out/profile.jsonl"
gzip -c profile/trace.json > "$out/trace.json.gz"

# The same layer with and without the profiler in the program, alternating; nothing of it is switched on.
if [ -x "$bundle/moescope_without_cupti" ]; then
  for round in 1 2 3 4 5; do
    for which in with without; do
      program=$moescope
      [ "$which" = with ] || program=$bundle/moescope_without_cupti
      "$program" run --backend cuda -L 1024 -d 512 --grid 128x128 -K 128 --schedule staircase -q \
        --min-samples 100 --output "$which-$round" >/dev/null
      cat "$which-$round/rows.jsonl" >>"$out/overhead_$which.jsonl"
    done
  done
fi
