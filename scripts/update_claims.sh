#!/usr/bin/env bash
# usage: update_claims.sh [MOESCOPE]    writes what `moescope claims results/DEVICE/*.jsonl* --markdown` says into
# docs/results/claims-DEVICE.md, for every device that has such a page
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C  # the order of files
for page in docs/results/claims-*.md; do
  device=${page#docs/results/claims-}
  table=$("${1:-build/cpu/experiments/moescope}" claims "results/${device%.md}"/*.jsonl* --markdown)
  PAGE=$page TABLE=$table python3 - <<'EOF'
import os, pathlib
begin, end = "<!-- claims: begin -->\n", "<!-- claims: end -->"
page = pathlib.Path(os.environ["PAGE"])
text = page.read_text()
head, rest = text.split(begin, 1)
page.write_text(head + begin + os.environ["TABLE"] + "\n" + end + rest.split(end, 1)[1])
EOF
done
