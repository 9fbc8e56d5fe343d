#!/usr/bin/env bash
# Writes what `moescope claims --markdown` says of every recorded GPU's rows between the marks <!-- claims: begin --> and
# <!-- claims: end --> of the document that has them: one table a device.
# usage: update_claims.sh [MOESCOPE]
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C # the order of files
rows=()
for ceilings in results/*/ceilings.jsonl; do # what every recorded GPU has
  rows+=("$(dirname "$ceilings")"/*.jsonl*)
done
TABLES=$("${1:-build/cpu/experiments/moescope}" claims "${rows[@]}" --markdown) python3 - <<'EOF'
import os, pathlib
begin, end = "<!-- claims: begin -->\n", "<!-- claims: end -->"
for document in [pathlib.Path("README.md"), *sorted(pathlib.Path("docs").glob("*.md"))]:
    text = document.read_text(encoding="utf-8")
    if begin in text:
        head, rest = text.split(begin, 1)
        document.write_text(head + begin + os.environ["TABLES"] + "\n" + end + rest.split(end, 1)[1], encoding="utf-8")
EOF
