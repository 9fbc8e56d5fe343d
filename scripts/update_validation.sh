#!/usr/bin/env bash
# Fits the simulator's calibration to recorded rows again, of every device that has one of its own, and writes what it then predicts
# into docs/simulator/validation.md, between the marks <!-- validation: NAME --> and <!-- end -->, NAME being points and shapes, with
# the device's folder before it for all but the first: once with points held out (that fit is the device's calibration.json), once
# with whole shapes held out, judged with a fit of their own. Four minutes a device on one core, no GPU.
# Usage: scripts/update_validation.sh [--check] [MOESCOPE]
# --check writes nothing and fails when a calibration or the document is not what the rows give.
set -euo pipefail
cd "$(dirname "$0")/.."
check=
if [ "${1:-}" = --check ]; then
  check=1
  shift
fi
CHECK=$check MOESCOPE=${1:-build/cpu/experiments/moescope} python3 - <<'EOF'
import gzip
import json
import os
import pathlib
import subprocess
import sys
import tempfile


def device_of(rows):
    """The folder of the device that the rows are of."""
    with (gzip.open if rows.suffix == ".gz" else open)(rows, "rt", encoding="utf-8") as lines:
        name = json.loads(next(lines))["header"]["device"]
    for file in sorted(pathlib.Path("data/devices").glob("*/device.json")):
        device = json.loads(file.read_text(encoding="utf-8"))
        if name in [device["name"], *device.get("runtime_names", [])]:
            return file.parent
    return None


document = pathlib.Path("docs/simulator/validation.md")
text = document.read_text(encoding="utf-8")
fresh = {}
for rows in sorted(pathlib.Path("results").glob("*/validation.jsonl*")):
    folder = device_of(rows)
    if folder is None or not (folder / "calibration.json").exists():
        continue
    for what in ("points", "shapes"):
        with tempfile.TemporaryDirectory() as scratch:
            fit = pathlib.Path(scratch) / "fit.json"
            table = subprocess.run(
                [os.environ["MOESCOPE"], "validate", rows, "--metric", "time_s,hbm_bytes", "--max-accesses", "1000000",
                 "--hold-out", what, "--seed", "0", "--fit", fit, "--format", "md", "-q"],
                check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
            if what == "points":
                fresh[folder / "calibration.json"] = fit.read_text(encoding="utf-8")
        name = what if len(fresh) == 1 else f"{folder.name} {what}"
        begin, end = f"<!-- validation: {name} -->\n", "<!-- end -->"
        head, mark, rest = text.partition(begin)
        _, tail_mark, tail = rest.partition(end)
        if not mark or not tail_mark:
            sys.exit(f"{document} has no {begin.strip()} ... {end}")
        text = f"{head}{begin}{table.strip()}\n{end}{tail}"
fresh[document] = text
stale = [path for path, now in fresh.items() if path.read_text(encoding="utf-8") != now]
if os.environ["CHECK"] and stale:
    sys.exit(f"not what the rows give: {', '.join(map(str, stale))}. Update: scripts/update_validation.sh")
for path in stale:
    path.write_text(fresh[path], encoding="utf-8")
EOF
