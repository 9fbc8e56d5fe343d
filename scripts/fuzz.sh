#!/usr/bin/env bash
# Builds every fuzz target and runs each for a bounded time from its seed corpus and from files of the repository, as
# many at a time as there are cores. A finding ends the run with a non-zero exit and is kept in build/cpu-asan/findings/.
# Usage: scripts/fuzz.sh [seconds per target, default 60 [target...]]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup_build
setup_tests
setup_sanitizers
export seconds=${1:-60}
case $seconds in '' | *[!0-9]* | 0) echo "usage: scripts/fuzz.sh [seconds per target [target...]]" >&2; exit 2 ;; esac
targets=("${@:2}")
[ ${#targets[@]} -gt 0 ] || targets=(tests/fuzz/*_fuzz.cpp)

export build=build/cpu-asan
export LSAN_OPTIONS=suppressions=$PWD/cmake/lsan.supp:print_suppressions=0
mkdir -p "$build/findings"
cmake --preset cpu-asan -DMOESCOPE_TESTS=ON >"$build/configure.log" 2>&1 || { cat "$build/configure.log" >&2; exit 1; }
cmake --build --preset cpu-asan --target fuzzers -- --quiet

# Files of the repository that a target starts from, beside its corpus: whole ones, as users have them.
real_files() {
  case $1 in
    calibration) echo data/devices/*/calibration.json ;;
    cluster) echo data/clusters/*.json data/clusters/measured/*.json ;;
    device) echo data/devices/*/device.json ;;
    experiment) echo experiments/configs/*.json ;;
    gpu_rates) echo data/devices/*/rates.json ;;
    golden) echo tests/data/golden/router_*.npz tests/data/golden/omnimoe_k1.npz ;;
    metric_catalogue) echo profiler/counters/metric_catalogue.json ;;
    packed_rows) echo results/*/auto-rows-alone.jsonl.gz ;;
    result_rows | rows_use) echo results/cpu/*.jsonl results/*/ceilings.jsonl tests/fuzz/corpus/r*_rows/*.jsonl ;;
  esac
}

fuzz() {
  local name kind log grown seeds
  name=$(basename "$1" .cpp)
  kind=${name%_fuzz}
  log="$build/$name.log"
  # New inputs go to the build folder: the seeds stay as they are.
  grown="$build/corpus/$name"
  seeds="$build/seeds/$name"
  mkdir -p "$grown" "$seeds"
  for file in $(real_files "$kind"); do
    cp "$file" "$seeds/$(echo "$file" | tr / -)"
  done
  # One thread: the reference would start as many as there are cores, beside the targets that run already.
  if ! OMP_NUM_THREADS=1 "$build/tests/fuzz/$name" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=65536 \
    -print_final_stats=1 -artifact_prefix="$build/findings/$name-" "$grown" "tests/fuzz/corpus/$kind" "$seeds" >"$log" 2>&1; then
    tail -n 60 "$log" >&2
    echo "fuzz: $name: FINDING, see $build/findings and $log" >&2
    return 1
  fi
  echo "fuzz: $name: $(awk '/number_of_executed_units/ {print $2}' "$log") inputs in ${seconds} s, no findings"
}
export -f fuzz real_files
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -c 'fuzz {}'
