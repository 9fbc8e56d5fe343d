#!/usr/bin/env bash
# Records what the simulator is validated against, on a machine with a GPU: `moescope profile`, so times and hardware counters of
# every stage, for 4 schedules at 21 points of shape and skew, one of them a trained router, and for strips of rows alone at 8 of
# them: 100 points, about two minutes. Then the same of the baselines: FFN experts, product keys in both forms, dense MLP; 47
# points, about two minutes more. Then the backward of 4 schedules at 11 points of shape, skew and what is saved, about three minutes.
# Usage: scripts/record_validation.sh BUNDLE OUT [PART...]  record them: OUT/validation.jsonl, OUT/validation-systems.jsonl,
#                                                           OUT/validation-backward.jsonl
#        scripts/record_validation.sh --list                print the command of every point, and run none
# PART is omnimoe, systems or backward (default: all). BUNDLE holds `moescope` (scripts/bundle.sh). Afterwards, anywhere:
#   moescope validate OUT/validation.jsonl
#   moescope validate OUT/validation-systems.jsonl
#   moescope validate OUT/validation-backward.jsonl
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

# The same of the baselines: Table A's shapes from few to many tokens, smallest and largest K, flat routing and skew.
system_commands() {
  local program=$1 out=$2
  measure() { # SYSTEM TOKENS TOP_K WORKLOAD SCHEDULE...
    local system=$1 tokens=$2 top_k=$3 workload=$4
    shift 4
    local shape=(--preset table-a -L "$tokens")
    [ "$top_k" = - ] || shape+=(-K "$top_k")
    echo "$program" profile --backend cuda --system "$system" "${shape[@]}" --workload "$workload" "${@/#/--schedule=}" \
      --metrics traffic --seed 1 -q --min-samples 11 --max-time 0.3 --ceilings "$out/ceilings/rows.jsonl" \
      --output "$out/$system-$tokens-$top_k-${workload//[:.]/-}"
  }
  local workload
  for workload in gaussian:1 zipf:1 hot:0.5,4; do
    for tokens in 64 1024 4096; do
      measure gshard "$tokens" 2 "$workload"
      measure deepseekmoe "$tokens" 4 "$workload"
    done
    measure gshard 1024 16 "$workload"
    measure deepseekmoe 1024 32 "$workload"
  done
  for workload in gaussian:1 zipf:1; do
    measure pkm 64 2500 "$workload" token_centric dense_masked
    measure pkm 1024 2500 "$workload" token_centric dense_masked
    measure peer 64 1250 "$workload" token_centric dense_masked
    measure peer 1024 1250 "$workload" token_centric dense_masked
  done
  measure gshard 16384 2 gaussian:1
  measure deepseekmoe 16384 4 gaussian:1
  measure pkm 1024 12500 gaussian:1 dense_masked
  measure peer 1024 6250 gaussian:1 dense_masked
  for tokens in 64 1024 16384; do
    measure dense_mlp "$tokens" - gaussian:1
  done
}

# The same of the backward: what is saved, width of the shared MLP, num_tokens, top_k, workload. The long ones last.
backward_points=("log_probs 1024 64 512 gaussian:1" "log_probs 1024 256 512 zipf:1" "log_probs 0 64 512 zipf:1" "log_probs 0 1024 512 zipf:1"
  "log_probs 0 1024 128 gaussian:1" "minimal 0 256 512 gaussian:1" "scores 0 64 512 gaussian:1" "scores 0 1024 512 gaussian:1"
  "scores 0 1024 4096 gaussian:1" "scores 0 4096 512 gaussian:1" "minimal 0 4096 512 gaussian:1")
backward_commands() {
  local program=$1 out=$2 number=0 save shared tokens top_k workload
  local list=(token_centric staircase staircase:atomics dense_masked)
  for point in "${backward_points[@]}"; do
    read -r save shared tokens top_k workload <<<"$point"
    number=$((number + 1))
    echo "$program" profile --backend cuda --direction backward --save "$save" --preset table-a-1024-512 --shared-size "$shared" \
      -L "$tokens" -K "$top_k" --workload "$workload" "${list[@]/#/--schedule=}" --metrics traffic --seed 1 -q --min-samples 11 \
      --max-time 0.3 --ceilings "$out/ceilings/rows.jsonl" --output "$out/backward-$number"
  done
}

if [ "${1:-}" = --list ]; then
  echo moescope ceilings --backend cuda --output OUT/ceilings
  commands moescope OUT
  system_commands moescope OUT
  backward_commands moescope OUT
  exit 0
fi
[ $# -ge 2 ] || { sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2; }
parts=("${@:3}")
[ ${#parts[@]} -gt 0 ] || parts=(omnimoe systems backward)
for part in "${parts[@]}"; do
  case $part in
    omnimoe | systems | backward) ;;
    *)
      echo "no part $part: omnimoe, systems or backward" >&2
      exit 2
      ;;
  esac
done
mkdir -p "$2"
bundle=$(realpath "$1")
out=$(realpath "$2")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export LD_LIBRARY_PATH=$bundle/lib:/usr/local/cuda/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
cd "$here/data" # rows name files as the command line does
"$bundle/moescope" ceilings --backend cuda --output "$scratch/ceilings"
record() { # FILE, commands from standard input
  : >"$1"
  while read -r line; do
    echo "== $line"
    $line || echo "exit code $?"
    cat "${line##* }/rows.jsonl" >>"$1" # at once: what is there stays if this is stopped
  done
  echo "$(grep -c '"metric":"hbm_read_bytes"' "$1") rows of HBM reads in $1"
}
for part in "${parts[@]}"; do
  if [ "$part" = omnimoe ]; then
    commands "$bundle/moescope" "$scratch" | record "$out/validation.jsonl"
  elif [ "$part" = systems ]; then
    system_commands "$bundle/moescope" "$scratch" | record "$out/validation-systems.jsonl"
  else
    backward_commands "$bundle/moescope" "$scratch" | record "$out/validation-backward.jsonl"
  fi
done
