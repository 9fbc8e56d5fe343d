#!/usr/bin/env bash
# Fits the simulator's calibration to recorded rows again, of every device that has one of its own, and writes what it then predicts
# into docs/simulator/validation.md, between the marks <!-- validation: NAME --> and <!-- end -->, NAME being points and shapes, with
# the device's folder before it for all but the first: once with points held out (that fit is the device's calibration.json), once
# with whole shapes held out, judged with a fit of their own. Four minutes a device on one core, no GPU. Then the same of the baselines,
# from results/NAME/validation-systems.jsonl* or, without it, from the stage times of table-a, dense-mlp and product-key-gather there:
# marks "systems points" and "systems shapes". Their kernels' fits are added to the device's calibration. Likewise the backward, from
# results/NAME/validation-backward.jsonl*: marks "backward points" and "backward shapes".
# Usage: scripts/update_validation.sh [--check] [--systems | --backward] [--device FOLDER] [MOESCOPE]
# --check writes nothing and fails when a calibration or the document is not what the rows give. --systems does the baselines alone,
# --backward the backward alone, --device one device (its folder's name in data/devices): the others stay as they are.
set -euo pipefail
cd "$(dirname "$0")/.."
check=
only=
device=
while [[ "${1:-}" == --* ]]; do
  case $1 in
    --check) check=1 ;;
    --systems | --backward) only=${1#--} ;;
    --device) device=${2:?a folder of data/devices}; shift ;;
    *) echo "no option $1: --check, --systems, --backward or --device" >&2; exit 2 ;;
  esac
  shift
done
CHECK=$check ONLY=$only DEVICE=$device MOESCOPE=${1:-build/cpu/experiments/moescope} python3 - <<'EOF'
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


BASELINES = ("dense_mlp", "gshard", "deepseekmoe", "pkm", "peer")
document = pathlib.Path("docs/simulator/validation.md")
text = document.read_text(encoding="utf-8")
fresh = {}


def validated(rows, what, systems):
    """The table that `validate` prints, and the fit that it writes."""
    with tempfile.TemporaryDirectory() as scratch:
        fit = pathlib.Path(scratch) / "fit.json"
        table = subprocess.run(
            [os.environ["MOESCOPE"], "validate", *rows, "--metric", "time_s,hbm_bytes", "--max-accesses", "1000000",
             *[word for system in systems for word in ("--system", system)],
             "--hold-out", what, "--seed", "0", "--fit", fit, "--format", "md", "-q"],
            check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
        return table.strip(), fit.read_text(encoding="utf-8")


def put(name, table):
    """The table between its marks."""
    global text
    begin, end = f"<!-- validation: {name} -->\n", "<!-- end -->"
    head, mark, rest = text.partition(begin)
    _, tail_mark, tail = rest.partition(end)
    if not mark or not tail_mark:
        sys.exit(f"{document} has no {begin.strip()} ... {end}")
    text = f"{head}{begin}{table}\n{end}{tail}"


def with_more(calibration, more, of, words):
    """Fits of kernels that the rows before say nothing of are added; where both have some, theirs stay."""
    whole, more = json.loads(calibration), json.loads(more)
    for fit in more["fits"]:
        fit["of"] = of
    whole["fits"] = [fit for fit in whole["fits"] if fit.get("of") != of]
    known = {(fit["kernel"], fit["stage"]) for fit in whole["fits"]}
    whole["fits"] += [fit for fit in more["fits"] if (fit["kernel"], fit["stage"]) not in known]
    whole["fits"].sort(key=lambda fit: [None, "systems", "backward"].index(fit.get("of")))
    first, *others = whole["source"].split("; of the ")
    others = [part for part in others if not part.startswith(words)] + [f"{words}: {more['source']}"]
    whole["source"] = "; of the ".join([first, *sorted(others, key=lambda part: part.startswith("backward"))])
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def systems_rows(folder):
    """Recorded rows of the baselines, those with counters first."""
    counted = sorted(folder.glob("validation-systems.jsonl*"))
    return counted or [file for name in ("table-a", "dense-mlp", "product-key-gather") for file in sorted(folder.glob(f"{name}.jsonl*"))]


devices = 0
for rows in sorted(pathlib.Path("results").glob("*/validation.jsonl*")):
    folder = device_of(rows)
    if folder is None or not (folder / "calibration.json").exists():
        continue
    devices += 1
    if os.environ["DEVICE"] not in ("", folder.name):
        continue
    calibration = folder / "calibration.json"
    fresh[calibration] = calibration.read_text(encoding="utf-8")
    for what in ("points", "shapes"):
        prefix = "" if devices == 1 else f"{folder.name} "
        only = os.environ["ONLY"]
        if not only:
            table, fit = validated([rows], what, ["omnimoe"])
            if what == "points":
                fresh[calibration] = fit
            put(prefix + what, table)
        parts = (("systems", "baselines", systems_rows(rows.parent), BASELINES),
                 ("backward", "backward", sorted(rows.parent.glob("validation-backward.jsonl*")), ["omnimoe"]))
        for name, words, files, systems in parts:
            if not files or only not in ("", name):
                continue
            table, fit = validated(files, what, systems)
            if what == "points":
                fresh[calibration] = with_more(fresh[calibration], fit, name, words)
            put(f"{prefix}{name} {what}", table)
fresh[document] = text
stale = [path for path, now in fresh.items() if path.read_text(encoding="utf-8") != now]
if os.environ["CHECK"] and stale:
    sys.exit(f"not what the rows give: {', '.join(map(str, stale))}. Update: scripts/update_validation.sh")
for path in stale:
    path.write_text(fresh[path], encoding="utf-8")
EOF
