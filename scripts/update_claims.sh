#!/usr/bin/env bash
# Writes what `moescope claims results/DEVICE/*.jsonl* --format md` says into docs/results/claims-DEVICE.md, of every
# recorded device (every one has ceilings). A device without such a page is an error: it wants a page of its own.
# usage: update_claims.sh [MOESCOPE]
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C # the order of files
for ceilings in results/*/ceilings.jsonl; do
  folder=$(dirname "$ceilings")
  page=docs/results/claims-$(basename "$folder").md
  table=$("${1:-build/cpu/experiments/moescope}" claims "$folder"/*.jsonl* --format md)
  PAGE=$page TABLE=$table python3 - <<'EOF'
import os, pathlib
begin, end = "<!-- claims: begin -->\n", "<!-- claims: end -->"
page = pathlib.Path(os.environ["PAGE"])
text = page.read_text(encoding="utf-8")
head, rest = text.split(begin, 1)
page.write_text(head + begin + os.environ["TABLE"] + "\n" + end + rest.split(end, 1)[1], encoding="utf-8")
EOF
done
