#!/usr/bin/env bash
# clang-format and clang-tidy over the sources git tracks. Usage: scripts/lint.sh [--format-only|--tidy-only|--fix]
# clang-tidy takes ten minutes and more on two cores, so CI leaves it to whoever changes the code.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-all}
mapfile -t sources < <(git ls-files '*.cpp' '*.hpp' '*.cu' '*.cuh' '*.c' '*.h')
case $mode in
  --fix) clang-format -i "${sources[@]}"; exit ;;
  all | --format-only) clang-format --dry-run --Werror "${sources[@]}"; echo "clang-format: ${#sources[@]} files, no findings" ;;
esac
[ "$mode" = --format-only ] && exit
# Host code of the cpu preset, without the benchmarks (findings inside benchmark.h); CUDA files need nvcc's own front end.
# A tree of its own, with a command for each file; the sources include generated headers.
cmake --preset cpu -B build/lint -DMOESCOPE_UNITY=OFF -DMOESCOPE_TESTS=OFF -DMOESCOPE_BENCHMARKS=OFF >/dev/null
cmake --build build/lint --target moescope_build_info -- --quiet
mapfile -t checked < <(git ls-files 'core/*.cpp' 'reference/*.cpp' 'profiler/*.cpp' 'experiments/*.cpp' 'capi/*.cpp' ':!experiments/bench_*')
printf '%s\n' "${checked[@]}" | xargs -P "$(nproc)" -n 4 clang-tidy -p build/lint --quiet 2>/dev/null
echo "clang-tidy: ${#checked[@]} files, no findings"
