#!/usr/bin/env bash
# usage: update_claims.sh [MOESCOPE]    writes what `moescope claims results/h100/*.jsonl* --format md` says into README.md
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C  # the order of files
table=$("${1:-build/cpu/experiments/moescope}" claims results/h100/*.jsonl* --format md)
TABLE=$table python3 - <<'EOF'
import os, pathlib
begin, end = "<!-- claims: begin -->\n", "<!-- claims: end -->"
readme = pathlib.Path("README.md")
text = readme.read_text()
head, rest = text.split(begin, 1)
readme.write_text(head + begin + os.environ["TABLE"] + "\n" + end + rest.split(end, 1)[1])
EOF
