#!/usr/bin/env bash
# Builds every fuzz target and runs each for a bounded time from its seed corpus. A finding ends the run with a non-zero
# exit and is kept in build/cpu-fuzz/findings/. Usage: scripts/fuzz.sh [seconds per target, default 60]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup_build
setup_fuzz
seconds=${1:-60}
case $seconds in '' | *[!0-9]* | 0) echo "usage: scripts/fuzz.sh [seconds per target]" >&2; exit 2 ;; esac

build=build/cpu-fuzz
mkdir -p "$build/findings"
cmake --preset cpu-fuzz >"$build/configure.log" 2>&1 || { cat "$build/configure.log" >&2; exit 1; }
cmake --build --preset cpu-fuzz --target fuzzers -- --quiet

for source in tests/fuzz/*_fuzz.cpp; do
  name=$(basename "$source" .cpp)
  # New inputs go to the build folder: the seeds stay as they are.
  grown="$build/corpus/$name"
  mkdir -p "$grown"
  log="$build/$name.log"
  if ! "$build/tests/fuzz/$name" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=4096 -print_final_stats=1 \
    -artifact_prefix="$build/findings/$name-" "$grown" "tests/fuzz/corpus/${name%_fuzz}" >"$log" 2>&1; then
    tail -n 60 "$log" >&2
    echo "fuzz: $name: FINDING, see $build/findings and $log" >&2
    exit 1
  fi
  echo "fuzz: $name: $(awk '/number_of_executed_units/ {print $2}' "$log") inputs in ${seconds} s, no findings"
done
