#!/usr/bin/env bash
# Records what the simulator is validated against, on a machine with a GPU: `moescope profile`, so times and hardware counters of
# every stage, for 4 schedules at 21 points of shape and skew, one of them a trained router, and for strips of rows alone at 8 of
# them: 100 points, about two minutes.
# Usage: scripts/record_validation.sh BUNDLE OUT        record them: OUT/validation.jsonl
#        scripts/record_validation.sh --list            print the command of every point, and run none
# BUNDLE holds `moescope` (scripts/bundle.sh). Afterwards, anywhere:
#   moescope validate OUT/validation.jsonl
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)

schedules=(token_centric expert_centric staircase dense_masked)
rows_alone=(staircase:rows staircase:rows:atomics) # W and V once: for few tokens, and flat routing
points=() # num_tokens, top_k, workload
for tokens in 64 256 1024 4096; do
  for workload in gaussian:1 zipf:1 zipf:1.5; do
    points+=("$tokens 512 $workload")
  done
done
for workload in gaussian:1 zipf:1; do
  points+=("1024 4096 $workload" "1024 128 $workload")
  points+=("1 512 $workload")
done
points+=("16384 512 gaussian:1" "16384 512 zipf:1") # last: the longest

# commands PROGRAM OUTPUT: one a line, ceilings aside.
commands() {
  local program=$1 out=$2 number=0 list=("${schedules[@]}")
  measure() { # NAME SHAPE...: the schedules of `list`
    local name=$1
    shift
    echo "$program" profile --backend cuda "$@" "${list[@]/#/--schedule=}" --metrics traffic --seed 1 -q \
      --min-samples 11 --max-time 0.3 --ceilings "$out/ceilings/rows.jsonl" --output "$out/$name"
  }
  measure trained --workload snapshot:small_layer2.safetensors
  for point in "${points[@]}"; do
    read -r tokens top_k workload <<<"$point"
    number=$((number + 1))
    list=("${schedules[@]}")
    if [ "$top_k" -eq 512 ] && [ "$tokens" -le 1024 ] && [ "$workload" != zipf:1.5 ]; then
      list+=("${rows_alone[@]}")
    fi
    measure "$number" --preset table-a-1024-512 -L "$tokens" -K "$top_k" --workload "$workload"
  done
}

if [ "${1:-}" = --list ]; then
  echo moescope ceilings --backend cuda --output OUT/ceilings
  commands moescope OUT
  exit 0
fi
[ $# -eq 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$2"
bundle=$(realpath "$1")
out=$(realpath "$2")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export LD_LIBRARY_PATH=$bundle/lib:/usr/local/cuda/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
cd "$here/data" # rows name files as the command line does
"$bundle/moescope" ceilings --backend cuda --output "$scratch/ceilings"
: >"$out/validation.jsonl"
commands "$bundle/moescope" "$scratch" | while read -r line; do
  echo "== $line"
  $line || echo "exit code $?"
  cat "${line##* }/rows.jsonl" >>"$out/validation.jsonl" # at once: what is there stays if this is stopped
done
echo "$(grep -c '"metric":"hbm_read_bytes"' "$out/validation.jsonl") rows of HBM reads in $out/validation.jsonl"
