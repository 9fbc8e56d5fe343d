#!/usr/bin/env bash
# Records the evidence of a revision on a machine with a GPU: what results/h100/ holds and README quotes.
#
#   scripts/record_h100.sh BUNDLE OUT PART...
#
# BUNDLE: a folder made by scripts/bundle.sh with moescope and the kernels_*_test programs. OUT: one folder a recording comes
# out. SNAPSHOTS (environment): a folder with tablea_layer2.safetensors and tablea_bn_layer2.safetensors; without it the
# trained routers of Table A size are left out, and it says so.
#   verify    check --full, every gpu test, compute-sanitizer's four tools                            about 7 minutes
#   points    compare: every schedule at the points of README's tables, under skew and trained routing about 6 minutes
#   peers     the PyTorch peers on the same shapes                                                    about 1 minute
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
[ $# -ge 3 ] || { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }
bundle=$1 out=$2
shift 2
export LD_LIBRARY_PATH=$bundle/lib:/usr/local/cuda/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
mkdir -p "$out"
moescope() { "$bundle/moescope" "$@"; }
step() { printf '\n== %s (%d s so far)\n' "$*" "$SECONDS"; }

verify() {
  step "check --full"
  moescope check --backend cuda --full --quiet --output "$out/check" | tail -8
  step "gpu tests"
  python3 "$here/scripts/gpu_evidence.py" tests "$bundle" "$out/gpu_tests"
  step "compute-sanitizer"
  python3 "$here/scripts/gpu_evidence.py" sanitize "$bundle" "$out/sanitizers"
}

# compare L K workloads...
compare() {
  local tokens=$1 top_k=$2 preset=table-a-1024-512
  shift 2
  step "compare $tokens,$top_k"
  moescope compare --backend cuda --preset "$preset" -L "$tokens" -K "$top_k" "${@/#/--workload=}" --seed 1 --quiet --min-samples 11 \
    --max-time 3 --output "$out/compare-$tokens-$top_k" | sed -n '/schedule/,$p'
}

points() {
  local skew=(gaussian:1 zipf:1 uniform hot:1,1) trained=()
  if [ -n "${SNAPSHOTS:-}" ]; then
    trained=("snapshot:$SNAPSHOTS/tablea_layer2.safetensors" "snapshot:$SNAPSHOTS/tablea_bn_layer2.safetensors")
  else
    echo "SNAPSHOTS is not set: no trained routers of Table A size"
  fi
  compare 1 512 "${skew[@]}" "${trained[@]}"
  compare 64 512 "${skew[@]}" "${trained[@]}"
  compare 256 512 "${skew[@]}" "${trained[@]}"
  compare 1024 512 "${skew[@]}" "${trained[@]}"
  compare 1024 4096 "${skew[@]}" "${trained[@]}"
  compare 4096 512 "${skew[@]}" "${trained[@]}"
  compare 16384 512 "${skew[@]}"  # the snapshots hold 4096 tokens
}

peers() {
  step "PyTorch peers"
  python3 "$here/experiments/peers/torch_peers.py" --out "$out/torch_peers" --samples 11 --points 1,512 64,512 256,512 1024,512 1024,4096 \
    4096,512 16384,512
}

for part in "$@"; do
  case $part in
    verify | points | peers) "$part" ;;
    *) echo "record_h100.sh: no part '$part'" >&2; exit 2 ;;
  esac
done
