#!/usr/bin/env bash
# Fits the simulator's calibration to the recorded rows again and writes what it then predicts into docs/simulator/validation.md,
# between the marks <!-- validation: NAME --> and <!-- end -->: once with points held out (that fit is the one that comes
# along), once with whole shapes held out, judged with a fit of their own. Four minutes on one core, no GPU.
# Usage: scripts/update_validation.sh [--check] [MOESCOPE]
# --check writes nothing and fails when the calibration or the document is not what the rows give.
set -euo pipefail
cd "$(dirname "$0")/.."
check=
if [ "${1:-}" = --check ]; then
  check=1
  shift
fi
moescope=${1:-build/cpu/experiments/moescope}
rows=results/h100/validation.jsonl.gz
calibration=data/calibration-h100.json
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for what in points shapes; do
  "$moescope" validate "$rows" --metric time_s,hbm_bytes --max-accesses 1000000 --hold-out "$what" --seed 0 \
    --fit "$scratch/$what.json" --markdown -q >"$scratch/$what.md"
done
CHECK=$check SCRATCH=$scratch CALIBRATION=$calibration python3 - <<'EOF'
import os
import pathlib
import shutil
import sys

scratch = pathlib.Path(os.environ["SCRATCH"])
calibration = pathlib.Path(os.environ["CALIBRATION"])
document = pathlib.Path("docs/simulator/validation.md")
text = document.read_text(encoding="utf-8")
for table in sorted(scratch.glob("*.md")):
    begin, end = f"<!-- validation: {table.stem} -->\n", "<!-- end -->"
    head, mark, rest = text.partition(begin)
    _, tail_mark, tail = rest.partition(end)
    if not mark or not tail_mark:
        sys.exit(f"{document} has no {begin.strip()} ... {end}")
    text = f"{head}{begin}{table.read_text(encoding='utf-8').strip()}\n{end}{tail}"
if not os.environ["CHECK"]:
    document.write_text(text, encoding="utf-8")
    shutil.copyfile(scratch / "points.json", calibration)
    sys.exit(0)
stale = [str(path) for path, fresh in ((document, text), (calibration, (scratch / "points.json").read_text(encoding="utf-8")))
         if path.read_text(encoding="utf-8") != fresh]
if stale:
    sys.exit(f"not what the rows give: {', '.join(stale)}. Update: scripts/update_validation.sh")
EOF
