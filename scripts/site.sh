#!/usr/bin/env bash
# Builds the site of docs/ into build/site, in an environment of its own (build/site-venv, from docs/requirements.txt). A broken
# link, anchor or a page that is not in the navigation is an error.
# Usage: scripts/site.sh [--serve]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup_packages "the site" python3-venv

venv=build/site-venv
setup_venv "$venv" docs/requirements.txt
export NO_MKDOCS_2_WARNING=true # a notice about another major version, on every build
[ "${1:-}" = --serve ] && exec "$venv/bin/mkdocs" serve
"$venv/bin/mkdocs" build --strict --clean
echo "site: build/site/index.html"
