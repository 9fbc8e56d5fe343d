#!/usr/bin/env bash
# Builds the Python wheel, on a machine without GPU or PyTorch: the package, libmoescope, the program with its data, and the
# shared libraries that these need. auditwheel gives it the tag of the oldest glibc that it runs on.
# Usage: scripts/wheel.sh [--test] [BUILD [CUDA_BUILD]]
# Without BUILD it compiles for x86-64-v3 in build/wheel-cpu and, where nvcc is, libmoescope with kernels for sm_80 and sm_90a in
# build/wheel-cuda: one wheel for both, that loads without CUDA too. With BUILD (build/cpu) it takes what is there, which may be
# for this machine's CPU alone: the version then ends in +BUILD's -march. CUDA_BUILD (build/cuda-all) is where libmoescope is taken
# from. The wheel lies in build/wheel/.
# --test installs it in a fresh environment, build/wheel-venv, and runs the package's tests there.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
test=0
[ "${1:-}" = --test ] && { test=1; shift; }
setup_packages "Python environments" python3-venv
build=${1:-}
library_build=${2:-$build}
if [ -z "$build" ]; then
  setup_build
  build=build/wheel-cpu
  library_build=$build
  for_any_cpu=(-DMOESCOPE_ARCH=x86-64-v3 -DMOESCOPE_TESTS=OFF -DMOESCOPE_BENCHMARKS=OFF)
  cmake --preset cpu -B "$build" "${for_any_cpu[@]}" >/dev/null
  cmake --build "$build" --target moescope moescope_c -- --quiet
  if command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; then
    library_build=build/wheel-cuda
    cmake --preset cuda-all -B "$library_build" "${for_any_cpu[@]}" >/dev/null
    cmake --build "$library_build" --target moescope_c -- --quiet
  fi
fi
grep -q '^MOESCOPE_CUDA:.*=ON' "$library_build/CMakeCache.txt" && [ -d "$library_build/kernels" ] ||
  echo "wheel.sh: no nvcc, or a build without CUDA: libmoescope is for the CPU alone"
arch=$(sed -n 's/^MOESCOPE_ARCH:STRING=//p' "$build/CMakeCache.txt")

stage=build/wheel-stage
rm -rf "$stage" build/wheel
mkdir -p "$stage" build/wheel
cp -r python/moescope python/pyproject.toml python/setup.py python/README.md "$stage/"
find "$stage" -name __pycache__ -prune -exec rm -r {} +
package=$stage/moescope
mkdir -p "$package/lib" "$package/bin" "$package/share/moescope/experiments"
install -m 755 -s "$library_build/capi/libmoescope.so" "$package/lib/libmoescope.so"
install -m 755 -s "$build/experiments/moescope" "$package/bin/moescope"
printf '%s\n' "$arch" >"$package/lib/arch.txt"
[ "$arch" = x86-64-v3 ] || printf '+%s\n' "${arch//-/.}" >"$stage/version_suffix.txt"
cp core/results/result.schema.json core/schedule/schedules.json "$package/"
cp LICENSE "$stage/"
mkdir "$stage/licenses"
for library in libbz2-1.0 libfmt9 libgomp1 libssl3 libzip4; do # what auditwheel takes along
  [ ! -f "/usr/share/doc/$library/copyright" ] || cp -L "/usr/share/doc/$library/copyright" "$stage/licenses/$library"
done
cp -r data "$package/share/moescope/"
cp -r experiments/configs "$package/share/moescope/experiments/"

tools=build/wheel-tools
setup_venv "$tools" python/requirements-build.txt
(cd "$stage" && "../../$tools/bin/pip" wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir dist .)
log=build/wheel/auditwheel.log
PATH=$PWD/$tools/bin:$PATH "$tools/bin/auditwheel" repair --wheel-dir build/wheel "$stage"/dist/moescope-*.whl >"$log" 2>&1 || {
  cat "$log" >&2
  exit 1
}
wheel=$(echo build/wheel/moescope-*.whl)
echo "$wheel ($(du -h "$wheel" | cut -f1))"
[ "$test" = 1 ] || exit 0

venv=build/wheel-venv
rm -rf "$venv"
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --require-hashes -r python/requirements-test.txt
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-index "$wheel"
# From elsewhere and without the checkout's variables: what is installed has to be enough.
cp -r python/tests python/examples "$venv/"
mkdir -p "$venv/docs"
cp -r docs/python "$venv/docs/"
(cd "$venv/tests" && env -u MOESCOPE -u MOESCOPE_LIBRARY -u PYTHONPATH ../bin/moescope --version &&
  env -u MOESCOPE -u MOESCOPE_LIBRARY -u PYTHONPATH OMP_WAIT_POLICY=passive ../bin/python -m unittest discover)
