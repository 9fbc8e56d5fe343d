#!/usr/bin/env bash
# Records the evidence of a revision on a machine with a GPU: what results/h100/ holds and README quotes.
#
#   scripts/record_h100.sh BUNDLE OUT PART...
#
# BUNDLE: a folder made by scripts/bundle.sh with moescope and the kernels_*_test programs. OUT: one folder a recording comes
# out. SNAPSHOTS (environment): a folder with tablea_layer2.safetensors and tablea_bn_layer2.safetensors; without it the
# trained routers of Table A size are left out, and it says so.
#   verify    check --full, every gpu test, compute-sanitizer's four tools                            about 4 minutes
#   points    compare: every schedule at the points of README's tables, under skew and trained routing about 1 minute
#   peers     the PyTorch peers on the same shapes                                                    about 1 minute
#   systems   the baselines: check --system, the dense MLP, the PyTorch peers of all                    about 1 minute
#   sweeps    every experiment file in experiments/configs that is for a GPU; SWEEPS (environment) names some of them. The
#             same command goes on after an interruption                                  minutes: sweep FILE --dry-run
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
[ $# -ge 3 ] || { sed -n '2,16s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$2"
bundle=$(realpath "$1") out=$(realpath "$2")
shift 2
export LD_LIBRARY_PATH=$bundle/lib:/usr/local/cuda/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
moescope() { "$bundle/moescope" "$@"; }
step() { printf '\n== %s (%d s so far)\n' "$*" "$SECONDS"; }

verify() {
  step "check --full and the gpu tests"
  local failed=0  # what fails is recorded too, and keeps nothing after it from being recorded
  # shellcheck disable=SC2016
  python3 "$here/scripts/gpu_evidence.py" tests "$bundle" "$out/gpu_tests" bash -c 'exec "$@" >"$0"' "$out/check.txt" \
    "$bundle/moescope" check --backend cuda --full --quiet "${all[@]/#/--schedule=}" --output "$out/check" || failed=1
  tail -4 "$out/check.txt"
  step "compute-sanitizer"
  python3 "$here/scripts/gpu_evidence.py" sanitize "$bundle" "$out/sanitizers" || failed=1
  return "$failed"
}

all=(token_centric expert_centric staircase staircase:atomics staircase:rows staircase:rows:atomics dense_masked sparse_library auto)

# compare L K workloads...
compare() {
  local tokens=$1 top_k=$2
  shift 2
  step "compare $tokens,$top_k"
  moescope compare --backend cuda --preset table-a-1024-512 -L "$tokens" -K "$top_k" "${@/#/--workload=}" "${all[@]/#/--schedule=}" \
    --seed 1 --quiet --min-samples 11 --max-time 0.8 --output "$out/compare-$tokens-$top_k" | sed -n '/layer.*speed-up/,/^times/p'
}

points() {
  local routings=(gaussian:1 zipf:1 hot:1,1)
  if [ -n "${SNAPSHOTS:-}" ]; then
    cd "$SNAPSHOTS"  # rows name files as the command line does
    routings+=(snapshot:tablea_layer2.safetensors snapshot:tablea_bn_layer2.safetensors)
  else
    echo "SNAPSHOTS is not set: no trained routers of Table A size"
  fi
  compare 4096 512 "${routings[@]}"
  compare 1024 512 "${routings[@]}"
  compare 1024 4096 "${routings[@]}"
  compare 64 512 "${routings[@]}"
  compare 1 512 "${routings[@]}"
  compare 16384 512 gaussian:1 zipf:1  # the snapshots hold 4096 tokens
  compare 256 512 gaussian:1
}

peers() {
  step "PyTorch peers"
  python3 "$here/experiments/peers/torch_peers.py" --out "$out/torch_peers" --samples 11 --points 1,512 64,512 256,512 1024,512 1024,4096 \
    4096,512 16384,512
}

systems() {
  step "check --system"
  moescope check --backend cuda --full --quiet --output "$out/check-systems" --system dense_mlp --system gshard --system deepseekmoe \
    --system pkm --system peer | tee "$out/check-systems.txt" | tail -4
  moescope check --backend cuda --full --quiet --output "$out/check-gather" --system pkm --system peer --schedule token_centric |
    tee "$out/check-gather.txt" | tail -4
  for system in pkm peer; do # what their authors do: the sweep of Table A takes the faster form
    for tokens in 1024 4096; do
      moescope run --backend cuda --system "$system" --preset table-a -L "$tokens" --schedule token_centric --workload gaussian:1 \
        --quiet --output "$out/gather-$system-$tokens"
    done
  done
  for tokens in 1024 4096 16384; do
    moescope run --backend cuda --system dense_mlp --preset "table-a-$tokens" --workload gaussian:1 --quiet --output "$out/dense-mlp-$tokens"
  done
  step "PyTorch peers of the baselines"
  python3 "$here/experiments/peers/torch_systems.py" --out "$out/torch_systems" --samples 11
}

sweeps() {
  local name
  cd "$here"  # files name data/ of the repository
  for name in ${SWEEPS:-ablations skew-trained skew shift small-batches scaling-tokens table-a drift groups tiles scaling-experts}; do
    step "sweep $name"
    moescope sweep "experiments/configs/$name.json" --backend cuda --quiet --output "$out/$name"
  done
}

for part in "$@"; do
  case $part in
    verify | points | peers | systems | sweeps) "$part" ;;
    *) echo "record_h100.sh: no part '$part'" >&2; exit 2 ;;
  esac
done
