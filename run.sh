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
# What takes minutes says so, on standard error: standard output is the program's.
[ -f "build/$preset/build.ninja" ] || echo "moescope: configuring build/$preset (log: $log)" >&2
"${configure[@]}" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
build=(cmake --build --preset "$preset" --target moescope -- --quiet)
program=build/$preset/experiments/moescope
missing=$(cd "build/$preset" && { ninja -t inputs moescope 2>/dev/null || true; } | while read -r file; do
  case $file in *.o) [ -f "$file" ] || echo "$file" ;; esac
done | wc -l)
if [ "$missing" -gt 3 ]; then # 3 s of a core each
  echo "moescope: compiling $missing units on $(nproc) cores, about $(((missing * 3 / $(nproc) + 59) / 60)) min" >&2
elif [ ! -x "$program" ] || [ -n "$(find core reference profiler experiments -name '*.?pp' -newer "$program" -print -quit)" ]; then
  echo "moescope: compiling what changed since the last build" >&2
fi
"${build[@]}" >&2
exec "$program" "$@"
