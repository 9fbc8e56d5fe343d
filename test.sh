#!/usr/bin/env bash
# From a fresh clone to green tests: installs what is missing, builds, runs every test. Arguments go to ctest.
set -euo pipefail
cd "$(dirname "$0")"
. scripts/setup.sh
setup_build
setup_tests
preset=${MOESCOPE_PRESET:-cpu}
[ "$preset" != cpu-asan ] || setup_sanitizers
mkdir -p "build/$preset"
log=build/$preset/configure.log
cmake --preset "$preset" -DMOESCOPE_TESTS=ON >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
cmake --build --preset "$preset"
exec ctest --preset "$preset" "$@"
