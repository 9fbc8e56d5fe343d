#!/usr/bin/env python3
"""Recomputes what recorded rows of fixed routing (workloads uniform and trace:) say wrong, in place; run once on
{groups,skew}.jsonl.gz of a device recorded before the counts left out stages that do not run.

    scripts/correct_uniform_rows.py MOESCOPE FILE...

- Analytic bytes and FLOP of the router's stages go: no router ran. The layer's become the sum of its stages'.
- strips_per_token and its maximum become those of `MOESCOPE inspect` on the same workload, the smallest cover.
Each changed row says so in its reason; nothing else is touched. A second run changes nothing."""
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

COUNTS = {"hbm_read_bytes", "hbm_write_bytes", "l2_read_bytes", "l2_write_bytes", "useful_flop", "executed_flop"}
ROUTER = {"router_project", "router_select"}
STRIPS = ("strips_per_token", "max_strips_per_token")
SUMMED = "recomputed: the sum of the stages that ran; no router did"
COVERED = "recomputed: the smallest cover; recorded as the best one by row length"


def fixed(row):
    return "metric" in row and row["workload"].split(":")[0] in ("uniform", "trace")


def is_count(row):
    return fixed(row) and row["source"] == "analytic" and row["metric"] in COUNTS


def quantity(row):
    return tuple(row[key] for key in row if key not in ("stage", "value", "samples", "spread", "status", "reason", "repro"))


def inspected(moescope, row, cache):
    shape = (row["L"], 8, f"{row['Nr']}x{row['Nc']}", row["K"], row["workload"], row["seed"])  # no routing here depends on d
    if shape not in cache:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "x")
            subprocess.run([moescope, "inspect", "-L", str(shape[0]), "-d", str(shape[1]), "--grid", shape[2], "-K", str(shape[3]),
                            "--workload", shape[4], "--seed", str(shape[5]), "--output", out], check=True, stdout=subprocess.DEVNULL)
            rows = map(json.loads, (out / "rows.jsonl").read_text().splitlines())
            cache[shape] = {line["metric"]: line["value"] for line in rows if "metric" in line}
    return cache[shape]


def corrected(lines, moescope):
    rows = [json.loads(line) for line in lines]
    sums = {}
    for row in rows:
        if is_count(row) and row["stage"] not in ROUTER | {"layer"}:
            sums[quantity(row)] = sums.get(quantity(row), 0) + row["value"]
    cache, removed, changed = {}, {}, 0
    for line, row in zip(lines, rows):
        before = json.dumps(row)
        if is_count(row) and row["stage"] in ROUTER:
            removed[row["point"]] = removed.get(row["point"], 0) + 1
            changed += 1
            continue
        if is_count(row) and row["stage"] == "layer" and row["value"] != sums[quantity(row)]:
            row["value"], row["reason"] = sums[quantity(row)], SUMMED
        if fixed(row) and row["metric"] in STRIPS and row["status"] == "ok":
            value = inspected(moescope, row, cache)[row["metric"]]
            if value != row["value"]:
                row["value"], row["reason"] = value, COVERED
        if isinstance(row.get("point"), dict):
            row["point"]["rows"] -= removed.pop(row["point"]["id"], 0)
        after = json.dumps(row)
        changed += after != before
        yield (line if after == before else json.dumps(row, separators=(",", ":"), ensure_ascii=False)), changed


def main():
    moescope, *files = sys.argv[1:]
    for name in files:
        path = Path(name)
        packed = path.suffix == ".gz"
        text = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        out = list(corrected(text.decode().splitlines(), moescope))
        data = "".join(line + "\n" for line, _ in out).encode()
        if data != text:
            path.write_bytes(gzip.compress(data, 9, mtime=0) if packed else data)
        print(f"{name}: {out[-1][1]} rows changed or removed")


if __name__ == "__main__":
    main()
