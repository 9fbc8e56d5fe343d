#!/usr/bin/env bash
# From a fresh clone to the main job: installs what is missing, builds, runs `moescope` with the given arguments
# (none: `compare`, every schedule on the trained routers in data/ and on a sweep of skew). Quick the second time.
set -euo pipefail
cd "$(dirname "$0")"
. scripts/setup.sh
setup_build
preset=${MOESCOPE_PRESET:-cpu}
# One tree with test.sh: what that chose stays; a new tree does without the tests' packages.
configure=(cmake --preset "$preset")
[ -f "build/$preset/CMakeCache.txt" ] || configure+=(-DMOESCOPE_TESTS=OFF -DMOESCOPE_BENCHMARKS=OFF)
log=build/$preset/configure.log
mkdir -p "build/$preset"
"${configure[@]}" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
cmake --build --preset "$preset" --target moescope -- --quiet
[ $# -eq 0 ] && set -- compare
exec "build/$preset/experiments/moescope" "$@"
