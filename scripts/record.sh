#!/usr/bin/env bash
# Records the evidence of a revision on a machine with a GPU: what results/NAME/ holds and docs/results quotes.
#
#   scripts/record.sh BUNDLE NAME PART...
#
# BUNDLE: a folder made by scripts/bundle.sh with moescope, kernels_tests and cupti_tests. NAME: the device, as its folder in
# results/ is called. OUT (environment): a folder instead of results/NAME. SNAPSHOTS (environment): a folder with
# tablea_layer2.safetensors and tablea_bn_layer2.safetensors; without it the trained routers of Table A size are left out, and
# it says so. Seconds of every step are printed. Exit code 1 when a part failed; the others are recorded all the same.
#   evidence  verify, sanitize, profile, points and peers: under 8 minutes
#   verify    every gpu test, check --full, check of shapes that were wrong once                      about 2 minutes
#   sanitize  compute-sanitizer's four tools on the tests and on odd layers                           about 2 minutes
#   profile   ceilings, counters against known work, every stage's counters (scripts/record_profile.sh) about 1 minute
#   points    compare: every schedule at the points of docs/results' tables, under skew and trained routing about 1 minute
#   peers     the PyTorch peers on the same shapes                                                    about 1 minute
#   backward  check --direction backward, and the backward of every schedule at the points of docs/training          about 2 minutes
#   systems   the baselines: check --system, the dense MLP, the PyTorch peers of all                  about 1 minute
#   operators the PyTorch operators: their tests, call overhead, steps and memory; the published tests where PUBLISHED (environment)
#             is a checkout of them; the example's loss curves where TEXT is a file. BUNDLE then has libmoescope.so about 4 minutes
#   sonic     SonicMoE's kernels on the shapes of gshard and deepseekmoe, where its packages are (sonic_systems.py) about 1 minute
#   coarse    FFN experts: check of every order of work and rule for tokens, Table A, few tokens, recorded routing where ROUTINGS
#             (environment) holds mixtral_like_routing.npz, mixtral_unbalanced_routing.npz and deepseek_like_routing.npz, and the
#             study of fine and coarse experts under skew                                              about 4 minutes
#   ranks     two GPUs: check --ranks 2, the layer shared by both and replicated, torch.distributed's forms and NCCL's collectives,
#             ranks that are killed or stopped                                                            about 4 minutes
#   sweeps    every experiment file in experiments/configs that is for a GPU; SWEEPS (environment) names some of them. The
#             same command goes on after an interruption                                minutes: sweep FILE --dry-run
# shellcheck disable=SC2317 # parts are called by their names
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
usage() { sed -n '2,29s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -ge 3 ] || usage
[[ $2 =~ ^[a-z0-9][a-z0-9_-]*$ ]] || { echo "record.sh: '$2' is no name of a device's folder (small letters, digits, - and _)" >&2; exit 2; }
bundle=$(realpath "$1") out=${OUT:-$here/results/$2}
shift 2
for part in "$@"; do # before anything runs
  case $part in
    evidence | verify | sanitize | profile | points | peers | backward | systems | operators | sonic | coarse | ranks | sweeps) ;;
    *) echo "record.sh: no part '$part'" >&2; exit 2 ;;
  esac
done
mkdir -p "$out"
out=$(realpath "$out")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export LD_LIBRARY_PATH=$bundle/lib:/usr/local/cuda/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
moescope() { "$bundle/moescope" "$@"; }
step() { printf '\n== %s (%d s so far)\n' "$*" "$SECONDS"; }
# keep FILE FOLDER...: the folders' rows, one after the other, as OUT/FILE.jsonl; long ones packed.
keep() {
  local name=$1
  shift
  rm -f "$out/$name.jsonl" "$out/$name.jsonl.gz"
  cat "${@/%//rows.jsonl}" >"$out/$name.jsonl"
  [ "$(stat -c %s "$out/$name.jsonl")" -lt 400000 ] || gzip -9 -n "$out/$name.jsonl"
}

all=(token_centric expert_centric staircase staircase:atomics staircase:rows staircase:rows:atomics dense_masked sparse_library auto)

# Layers that were wrong once, or nearly: dense_masked where few pairs decide, selections that rounding may turn.
odd_layers=(
  "-L 4097 --grid 64x64 -d 1024 -K 8 --activation relu --workload hot:1,1"
  "-L 4097 --grid 64x64 -d 1024 -K 8 --activation relu --workload gaussian:30"
  "-L 513 --grid 17x900 -d 40 -K 65 --workload uniform"
  "-L 257 --grid 321x640 -d 264 -K 777 --gates probability --activation gelu --workload gaussian:0.01"
)

verify() {
  step "gpu tests, check --full"
  local failed=0 number=0 layer # what fails is recorded too, and keeps nothing after it from being recorded
  # shellcheck disable=SC2016
  python3 "$here/scripts/gpu_evidence.py" tests "$bundle" "$scratch/gpu_tests" bash -c 'exec "$@" >"$0"' "$scratch/check.txt" \
    "$bundle/moescope" check --backend cuda --full --quiet "${all[@]/#/--schedule=}" --output "$scratch/check" || failed=1
  tail -4 "$scratch/check.txt"
  keep gpu_tests "$scratch/gpu_tests"
  local checks=("$scratch/check")
  for layer in "${odd_layers[@]}"; do
    number=$((number + 1))
    step "check $layer"
    # shellcheck disable=SC2086
    moescope check --backend cuda --quiet $layer "${all[@]/#/--schedule=}" --output "$scratch/check-$number" >"$scratch/check.txt" || failed=1
    grep -E "^failed|FAILED" "$scratch/check.txt" || tail -1 "$scratch/check.txt"
    checks+=("$scratch/check-$number")
  done
  keep check "${checks[@]}"
  return "$failed"
}

sanitize() {
  step "compute-sanitizer"
  local failed=0
  python3 "$here/scripts/gpu_evidence.py" sanitize "$bundle" "$scratch/sanitizers" || failed=1
  keep sanitizers "$scratch/sanitizers"
  return "$failed"
}

profile() {
  step "ceilings, counters and profile"
  local snapshot=()
  [ -z "${SNAPSHOTS:-}" ] || snapshot=("$SNAPSHOTS/tablea_layer2.safetensors")
  "$here/scripts/record_profile.sh" "$bundle" "$out" "${snapshot[@]}"
}

# compare L K workloads...
compare() {
  local tokens=$1 top_k=$2
  shift 2
  step "compare $tokens,$top_k"
  moescope compare --backend cuda --preset table-a-1024-512 -L "$tokens" -K "$top_k" "${@/#/--workload=}" "${all[@]/#/--schedule=}" \
    --seed 1 --quiet --min-samples 11 --max-time 0.8 --output "$scratch/compare-$tokens-$top_k" | sed -n '/layer.*speed-up/,/^times/p'
  keep "compare-$tokens-$top_k" "$scratch/compare-$tokens-$top_k"
}

points() {
  local routings=(gaussian:1 zipf:1 "hot:1,1")
  if [ -n "${SNAPSHOTS:-}" ]; then
    cd "$SNAPSHOTS" # rows name files as the command line does
    routings+=(snapshot:tablea_layer2.safetensors snapshot:tablea_bn_layer2.safetensors)
  else
    echo "SNAPSHOTS is not set: no trained routers of Table A size"
  fi
  compare 4096 512 "${routings[@]}"
  compare 1024 512 "${routings[@]}"
  compare 1024 4096 "${routings[@]}"
  compare 64 512 "${routings[@]}"
  compare 1 512 "${routings[@]}"
  compare 16384 512 gaussian:1 zipf:1 # the snapshots hold 4096 tokens
  compare 256 512 gaussian:1
}

peers() {
  step "PyTorch peers"
  python3 "$here/experiments/peers/torch_peers.py" --out "$scratch/torch_peers" --samples 11 --points 1,512 64,512 256,512 1024,512 \
    1024,4096 4096,512 16384,512
  keep torch_peers "$scratch/torch_peers"
}

backward() {
  local failed=0 point
  local schedules=(token_centric staircase staircase:atomics staircase:rows dense_masked)
  step "check --direction backward"
  moescope check --backend cuda --direction backward --quiet "${schedules[@]/#/--schedule=}" --output "$scratch/check-backward" \
    >"$scratch/check.txt" || failed=1
  grep -E "^failed|FAILED" "$scratch/check.txt" || true
  tail -2 "$scratch/check.txt"
  keep check-backward "$scratch/check-backward"
  # TOKENS TOP_K SAVE WORKLOAD...
  one() {
    local name="backward-$1-$2-$3" tokens=$1 top_k=$2 save=$3
    shift 3
    step "$name"
    moescope compare --backend cuda --direction backward --save "$save" --preset table-a-1024-512 --shared-size 0 -L "$tokens" -K "$top_k" \
      "${@/#/--workload=}" "${schedules[@]/#/--schedule=}" --seed 1 --quiet --min-samples 11 --max-time 0.4 \
      --output "$scratch/$name" | grep -E "token_centric|staircase|dense_masked" || failed=1
    keep "$name" "$scratch/$name"
  }
  for point in "4096 512 scores gaussian:1 zipf:1 hot:1,1" "1024 512 scores gaussian:1" "64 512 scores gaussian:1" "1024 4096 scores gaussian:1" \
    "16384 512 scores gaussian:1" "4096 512 minimal gaussian:1"; do
    # shellcheck disable=SC2086
    one $point
  done
  # Rows of touched experts alone, and the optimizer's step on them and on all. NAME TOKENS OPTION...
  part_of() {
    local name="backward-$2-512-$1" tokens=$2
    shift 2
    step "$name"
    moescope compare --backend cuda --direction backward --save scores --preset table-a-1024-512 --shared-size 0 -L "$tokens" -K 512 \
      --workload gaussian:1 --seed 1 --quiet --min-samples 11 --max-time 0.4 "$@" --output "$scratch/$name" |
      grep -E "token_centric|staircase|dense_masked" || failed=1
    keep "$name" "$scratch/$name"
  }
  for point in 64 4096; do
    part_of touched "$point" --gradients touched --schedule token_centric
    part_of added "$point" --gradients added --schedule token_centric --schedule staircase
    part_of step-touched "$point" --gradients touched --optimizer touched --schedule token_centric --schedule staircase
    part_of step-dense "$point" --optimizer dense --schedule token_centric --schedule staircase
  done
  step "PyTorch's AdamW"
  python3 "$here/experiments/peers/torch_optimizer.py" --out "$scratch/torch_optimizer" || failed=1
  keep torch_optimizer "$scratch/torch_optimizer"
  return "$failed"
}

systems() {
  local failed=0 system tokens
  step "check --system"
  moescope check --backend cuda --full --quiet --output "$scratch/check-systems" --system dense_mlp --system gshard --system deepseekmoe \
    --system pkm --system peer | tail -4 || failed=1
  keep check-systems "$scratch/check-systems"
  moescope check --backend cuda --full --quiet --output "$scratch/check-gather" --system pkm --system peer --schedule token_centric |
    tail -4 || failed=1
  keep check-gather "$scratch/check-gather"
  local runs=()
  for system in pkm peer; do # what their authors do: the sweep of Table A takes the faster form
    for tokens in 1024 4096; do
      moescope run --backend cuda --system "$system" --preset table-a -L "$tokens" --schedule token_centric --workload gaussian:1 \
        --quiet --output "$scratch/gather-$system-$tokens"
      runs+=("$scratch/gather-$system-$tokens")
    done
  done
  keep product-key-gather "${runs[@]}"
  runs=()
  for tokens in 1024 4096 16384; do
    moescope run --backend cuda --system dense_mlp --preset "table-a-$tokens" --workload gaussian:1 --quiet --output "$scratch/dense-mlp-$tokens"
    runs+=("$scratch/dense-mlp-$tokens")
  done
  keep dense-mlp "${runs[@]}"
  step "PyTorch peers of the baselines"
  python3 "$here/experiments/peers/torch_systems.py" --out "$scratch/torch_systems" --samples 11
  keep torch_systems "$scratch/torch_systems"
  return "$failed"
}

operators() {
  local failed=0 peers=$here/experiments/peers
  export PYTHONPATH=$here/python MOESCOPE_LIBRARY=$bundle/libmoescope.so OMP_WAIT_POLICY=passive
  step "operators' tests"
  python3 "$peers/op_tests.py" --out "$scratch/op_tests" test_cuda test_cuda_framework test_torch test_record test_examples >"$scratch/op_tests.txt" 2>&1 || failed=1
  grep -E "^(ERROR|FAIL):|^Ran|^OK|^FAILED" "$scratch/op_tests.txt"
  keep op_tests "$scratch/op_tests"
  step "what a call costs, forward and step"
  python3 "$peers/op_overhead.py" --out "$scratch/op_overhead" --steps --program "$bundle/moescope" ${PUBLISHED:+--published "$PUBLISHED"} || failed=1
  keep op_overhead "$scratch/op_overhead"
  if [ -n "${PUBLISHED:-}" ]; then
    step "the published tests, on our operators and on its own"
    python3 "$peers/published_tests.py" --published "$PUBLISHED" --out "$scratch/published" || failed=1
    timeout 300 python3 "$peers/published_tests.py" --published "$PUBLISHED" --own --out "$scratch/published-own" || true # its backward fails
    keep published_tests "$scratch/published" "$scratch/published-own"
  fi
  if [ -n "${TEXT:-}" ]; then
    step "the example's loss curves"
    rm -rf "$out/bytes_lm"
    python3 "$peers/op_training.py" "$TEXT" --out "$scratch/op_training" --record "$out/bytes_lm" || failed=1
    rm -f "$out/bytes_lm/layer.safetensors" # the weights; what was routed is in the traces
    keep op_training "$scratch/op_training"
  fi
  return "$failed"
}

ranks() {
  local failed=0 tokens two=() one=()
  step "check --ranks 2"
  moescope check --backend cuda --ranks 2 --quiet --schedule staircase --schedule staircase:atomics --schedule staircase:rows \
    --output "$scratch/check-ranks" | tail -2 || failed=1
  moescope check --backend cuda --ranks 2 --placement strips+hot:4 --quiet --schedule staircase --output "$scratch/check-hot" | tail -2 || failed=1
  keep check-ranks "$scratch/check-ranks" "$scratch/check-hot"
  for tokens in 4096 1024 64 16384; do # of each GPU: shared by two, and alone with all experts
    step "$tokens tokens a GPU"
    for ranks in 2 1; do
      moescope compare --backend cuda --ranks "$ranks" --preset table-a-1024-512 -L "$((ranks * tokens))" --workload gaussian:1 \
        --workload zipf:1 --workload hot:1,1 --schedule staircase --schedule staircase:atomics --seed 1 --quiet --min-samples 15 --max-time 0.4 \
        --output "$scratch/ranks-$ranks-$tokens" | grep -E "staircase" || failed=1
    done
    two+=("$scratch/ranks-2-$tokens")
    one+=("$scratch/ranks-1-$tokens")
  done
  keep ranks "${two[@]}"
  keep ranks-alone "${one[@]}"
  step "torch.distributed"
  python3 "$here/experiments/peers/torch_ranks.py" --out "$scratch/torch_ranks" --samples 11 || failed=1
  keep torch_ranks "$scratch/torch_ranks"
  step "ranks that fail"
  python3 "$here/scripts/gpu_evidence.py" ranks "$bundle" "$scratch/rank_failures" || failed=1
  keep rank_failures "$scratch/rank_failures"
  return "$failed"
}

sonic() {
  step "SonicMoE"
  local traces=()
  [ -z "${ROUTINGS:-}" ] || traces=(--traces "$ROUTINGS/mixtral_like_routing.npz#layer=0" "$ROUTINGS/mixtral_unbalanced_routing.npz#layer=0"
    "$ROUTINGS/mixtral_unbalanced_routing.npz#layer=3")
  python3 "$here/experiments/peers/sonic_systems.py" --out "$scratch/sonic_systems" --samples 11 --rounding nearest \
    ${SONIC_KERNELS:+--kernels "$SONIC_KERNELS"} "${traces[@]}"
  keep sonic_systems "$scratch/sonic_systems"
}

coarse() {
  local failed=0 name
  step "check: orders of work, rules for tokens"
  moescope check --backend cuda --system gshard --system deepseekmoe --quiet --output "$scratch/check-ffn" --schedule padded:1.25 --schedule padded:0.5 \
    --schedule token_rounding --schedule token_rounding:up:16 --schedule token_rounding:down --schedule token_centric --schedule dense_masked |
    tail -4 || failed=1
  keep check-ffn "$scratch/check-ffn"
  cd "$here" # files name data/ of the repository
  for name in table-a-ffn ffn-forms coarse-fine; do
    step "sweep $name"
    moescope sweep "experiments/configs/$name.json" --backend cuda --quiet --output "$scratch/$name" | tail -3 || failed=1
    keep "$name" "$scratch/$name"
  done
  if [ -n "${ROUTINGS:-}" ]; then
    cd "$ROUTINGS" # rows name files as the command line does
    local runs=() traces=() file layer
    for file in mixtral_like mixtral_unbalanced deepseek_like; do
      traces=()
      for layer in 0 1 2 3; do traces+=("--workload=trace:${file}_routing.npz#layer=$layer"); done
      step "recorded routing: $file"
      for width in "256 128" "1024 512" "2048 1408"; do
        read -r hidden size <<<"$width"
        moescope compare --backend cuda --system gshard -d "$hidden" --expert-size "$size" "${traces[@]}" --schedule expert_centric \
          --schedule padded:1.25 --schedule token_rounding:down --seed 1 --quiet --min-samples 11 --max-time 0.2 \
          --output "$scratch/$file-$hidden" | grep -E "expert_centric|padded|rounding" || failed=1
        runs+=("$scratch/$file-$hidden")
      done
    done
    cd "$here"
    keep coarse-fine-recorded "${runs[@]}"
  fi
  return "$failed"
}

sweeps() {
  local name
  cd "$here" # files name data/ of the repository
  for name in ${SWEEPS:-ablations skew-trained skew shift small-batches scaling-tokens table-a drift groups tiles scaling-experts coarse-fine}; do
    step "sweep $name"
    moescope sweep "experiments/configs/$name.json" --backend cuda --quiet --output "$out/sweeps/$name"
    keep "$name" "$out/sweeps/$name"
  done
}

failed=0
for part in "$@"; do
  [ "$part" != evidence ] || part="verify sanitize profile points peers"
  for one in $part; do
    set +e # a command after && or in an if would run without -e
    (set -e; "$one")
    status=$?
    set -e
    [ "$status" -eq 0 ] || { failed=1; echo "record.sh: $one failed" >&2; }
  done
done
step "done"
exit "$failed"
