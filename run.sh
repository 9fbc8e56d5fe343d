#!/usr/bin/env bash
# From a fresh clone to the main job: installs what is missing, builds, runs `moescope` with the given arguments
# (none: `compare`, the skew study on the recorded layer in data/). Quick the second time.
set -euo pipefail
cd "$(dirname "$0")"
. scripts/setup.sh
setup_build
preset=${MOESCOPE_PRESET:-cpu}
log=build/$preset/configure.log
mkdir -p "build/$preset"
cmake --preset "$preset" -DMOESCOPE_TESTS=OFF -DMOESCOPE_BENCHMARKS=OFF -B "build/$preset-run" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
cmake --build "build/$preset-run" --target moescope -- --quiet
[ $# -eq 0 ] && set -- compare
exec "build/$preset-run/experiments/moescope" "$@"
