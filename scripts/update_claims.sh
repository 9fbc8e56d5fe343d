#!/usr/bin/env bash
# Writes what `moescope claims --format md` says of every recorded GPU's rows between the marks <!-- claims: begin --> and
# <!-- claims: end --> of the document that has them: one table a device.
# usage: update_claims.sh [MOESCOPE]
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C # the order of files
scratch=$(mktemp)
trap 'rm -f "$scratch"' EXIT
for ceilings in results/*/ceilings.jsonl; do # what every recorded GPU has
  "${1:-build/cpu/experiments/moescope}" claims "$(dirname "$ceilings")"/*.jsonl* --format md >>"$scratch"
done
TABLES=$scratch python3 - <<'EOF'
import os, pathlib
begin, end = "<!-- claims: begin -->\n", "<!-- claims: end -->"
for document in [pathlib.Path("README.md"), *sorted(pathlib.Path("docs").glob("*.md"))]:
    text = document.read_text(encoding="utf-8")
    if begin in text:
        head, rest = text.split(begin, 1)
        tables = pathlib.Path(os.environ["TABLES"]).read_text(encoding="utf-8")
        document.write_text(head + begin + tables + end + rest.split(end, 1)[1], encoding="utf-8")
EOF
