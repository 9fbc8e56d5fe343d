#!/usr/bin/env bash
# Runs the notebooks from top to bottom without a GPU, in an environment of their own (build/notebooks-venv, from
# notebooks/requirements.txt), after the checks of their loader. What is committed, figures of docs/ included, must
# be what the recorded rows give.
# Usage: scripts/notebooks.sh [--update]
# --update writes outputs and figures into notebooks/ and docs/ instead. MOESCOPE names a program that is built already.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup_packages "notebooks" python3-venv
setup_packages "figures" gnuplot-nox
[ -n "${MOESCOPE:-}" ] || ./run.sh --version >/dev/null

export MOESCOPE_GPU=${MOESCOPE_GPU:-h100} # whose rows and findings are committed, however many files another device has
venv=build/notebooks-venv
setup_venv "$venv" notebooks/requirements.txt
"$venv/bin/python" -m unittest discover -s notebooks -p 'test_*.py' -q
PYTHONPATH=python "$venv/bin/python" -m unittest discover -s python/tests -p 'test_rows.py' -q
PYTHONPATH=python "$venv/bin/python" -m unittest discover -s python/tests -p 'test_figures.py' -q
mkdir -p build/notebooks
exec "$venv/bin/python" notebooks/run_notebooks.py "$@" build/notebooks
