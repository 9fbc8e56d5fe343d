#!/usr/bin/env python3
"""Writes the parts of README and docs/ that follow from the program, its schemas and the recorded rows.

Usage: scripts/update_docs.py [--check] [--moescope PROGRAM]
--check writes nothing and fails when a part is not what it should be. PROGRAM: build/cpu/experiments/moescope by default.

| part                                   | from                                      |
| -------------------------------------- | ----------------------------------------- |
| README.md, GPU table                   | results/DEVICE/compare-*                  |
| docs/results/DEVICE.md, its table      | the same                                  |
| docs/performance/index.md, its table   | results/DEVICE/profile.jsonl              |
| docs/reference/rows.md, files.md       | the program's schemas, metric_catalogue.json, device files |
| docs/python/measured.md                | results/DEVICE/op_*, published_tests      |
| docs/reference/commands.md             | the program's --help                      |

Claims, findings and validation have writers of their own: update_claims.sh, notebooks.sh, update_validation.sh.
"""
import argparse
import gzip
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import operator_tables

ROOT = Path(__file__).resolve().parents[1]
SHOWN = "h200"  # the device of README's table: the newest recording of all schedules
PROFILED = sorted(file.parent.name for file in (ROOT / "results").glob("*/profile.jsonl") if (file.parent / "ceilings.jsonl").exists())
COMPARED = {"token_centric": "token_centric", "expert_centric": "expert_centric", "staircase": "staircase",
            "staircase:atomics": "staircase :atomics", "dense_masked": "dense_masked"}


def between(text: str, begin: str, end: str, body: str, where: str) -> str:
    """`text` with `body` between the two marks. Throws ValueError without them."""
    head, mark, rest = text.partition(begin)
    _, tail_mark, tail = rest.partition(end)
    if not mark or not tail_mark:
        raise ValueError(f"{where} has no {begin} ... {end}")
    return f"{head}{begin}\n{body.strip()}\n{end}{tail}"


def table(header: list[str], lines: list[list[str]], right: int | None = None) -> str:
    """Markdown; columns from `right` on are numbers."""
    rules = ["---:" if right is not None and column >= right else "---" for column in range(len(header))]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (header, rules, *lines))


# ---- recorded rows

def layers(device: str) -> tuple[dict, str, str]:
    """Median times of whole layers under gaussian:1, {(L, K): {schedule: seconds}}, the device's name and the date."""
    times: dict = {}
    name = date = ""
    for file in sorted((ROOT / "results" / device).glob("compare-*.jsonl.gz")):
        for line in gzip.open(file, "rt", encoding="utf-8"):
            row = json.loads(line)
            if "header" in row:
                name, date = row["header"]["device"], max(date, row["header"]["started_utc"][:10])
            elif (row.get("metric") == "time_s" and row["stage"] == "layer" and row["source"] == "measured"
                  and row["workload"] == "gaussian:1" and row["status"] == "ok" and row["l2_state"] == "cold"):
                times.setdefault((row["L"], row["K"]), {})[row["schedule"]] = row["value"]
    return dict(sorted(times.items(), key=lambda point: (point[0][1], point[0][0]))), name, date


def milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}" if value >= 0.9995 else f"{value:.3f}"


def others_table(device: str) -> str:
    """The schedules that times_table() leaves out, and `auto`."""
    names = ["staircase:rows", "staircase:rows:atomics", "sparse_library", "auto"]
    lines = [[f"{tokens},\u00a0{k}", *[milliseconds(times[name]) if name in times else "-" for name in names]]
             for (tokens, k), times in layers(device)[0].items()]
    return table(["L, K", *names], lines, 1)


def times_table(device: str, schedules: dict[str, str]) -> str:
    """A line per point, the fastest schedule bold; last column: what the fastest gains over the paper's schedule."""
    points, name, date = layers(device)
    lines, spans = [], []
    for (tokens, k), times in points.items():
        best = min((times[s], s) for s in schedules if s in times)[1]
        if not spans or spans[-1][0] != (k, best):
            spans.append([(k, best), tokens, tokens])
        spans[-1][2] = tokens
        cells = [("**{}**" if s == best else "{}").format(milliseconds(times[s])) if s in times else "-" for s in schedules]
        lines.append([f"{tokens},\u00a0{k}", *cells, f"{times['expert_centric'] / times[best]:.1f}x"])
    caption = (f"Milliseconds on one {name}, {date}; bf16, N = 320 x 320, d = 1024, `gaussian:1`, cold L2. L: tokens, K: experts per token. "
               "*Gain*: the fastest over `expert_centric`, the paper's schedule.")
    fastest = "Fastest: " + "; ".join(f"`{best}` at {first}{f' to {last}' if last > first else ''} tokens, K = {k}"
                                      for (k, best), first, last in spans) + "."
    wrapped = [textwrap.fill(words, 138, break_long_words=False, break_on_hyphens=False) for words in (caption, fastest)]
    return table(["L, K", *schedules.values(), "gain"], lines, 1) + "\n\n" + "\n\n".join(wrapped)


KERNELS = [  # stage, a schedule that runs it, its name, its page
    ("router_project", "token_centric", "router_project", "router.md"),
    ("router_select", "staircase:atomics", "router_select, strips", "router.md"),
    ("router_select", "token_centric", "router_select, pairs", "router.md"),
    ("schedule", "staircase:atomics", "schedule, from strips", "schedule.md"),
    ("schedule", "expert_centric", "schedule, from pairs", "schedule.md"),
    ("experts", "token_centric", "experts, token_centric", "token-centric.md"),
    ("experts", "expert_centric", "experts, expert_centric", "other-experts.md"),
    ("experts", "staircase", "experts, staircase", "staircase.md"),
    ("experts", "staircase:atomics", "experts, staircase:atomics", "staircase.md"),
    ("experts", "dense_masked", "experts, dense_masked", "other-experts.md"),
    ("experts", "sparse_library", "experts, sparse_library", "other-experts.md"),
    ("shared_mlp", "token_centric", "shared_mlp", "layer.md")]


def kernel_table(devices: list[str]) -> str:
    """Time of every kernel and what bounds it, as `profile` recorded it on each device under gaussian:1."""
    columns, captions = [], []
    for device in devices:
        found: dict = {}
        for line in (ROOT / "results" / device / "profile.jsonl").open(encoding="utf-8"):
            row = json.loads(line)
            if "header" in row:
                captions.append(f"{row['header']['device']}, {row['header']['started_utc'][:10]}")
            elif row.get("workload") == "gaussian:1" and row["metric"] in ("time_s", "nearest_limit_fraction") and row["status"] == "ok":
                found.setdefault((row["stage"], row["schedule"]), {})[row["metric"]] = row
        columns.append(found)
    lines = []
    for stage, schedule, name, page in KERNELS:
        cells = [f"[{name}]({page})"]
        for found in columns:
            row = found.get((stage, schedule), {})
            cells += [milliseconds(row["time_s"]["value"]) if "time_s" in row else "-",
                      row["nearest_limit_fraction"]["reason"] if "nearest_limit_fraction" in row else "-"]
        lines.append(cells)
    header = ["kernel", *[title for device in devices for title in (f"{device.upper()}, ms", "bound by")]]
    return (table(header, lines) + "\n\nL = 4096, K = 512, d = 1024, N = 320 x 320, bf16, `gaussian:1`, cold L2; `results/DEVICE/profile.jsonl` ("
            + "; ".join(captions) + ").")


def operator_parts(device: str) -> list[tuple[str, str, str]]:
    """Of docs/python/measured.md."""
    parts = [("<!-- operators: tests -->", "<!-- end -->", operator_tables.tests(device))]
    for name in ("calls", "forward", "steps", "published", "training"):
        header, lines, said = getattr(operator_tables, name)(device)
        parts.append((f"<!-- operators: {name} -->", "<!-- end -->", f"{table(header, lines, 1)}\n\n{said}"))
    return parts


# ---- schemas

def kind(field: dict) -> str:
    if "enum" in field:
        return ", ".join(str(value) for value in field["enum"])
    names = field.get("type", field.get("$ref", "").rpartition("/")[2])
    return " or ".join(names) if isinstance(names, list) else names


def since(schema: dict, name: str) -> int:
    """The first version that requires the field."""
    versions = [min(rule["if"]["properties"]["schema_version"]["enum"]) for rule in schema.get("allOf", [])
                if name in rule["then"].get("required", [])]
    return 1 if name in schema.get("required", []) or not versions else min(versions)


def row_fields(schema: dict) -> str:
    row = schema["$defs"]["row"]
    about = {"schema_version": "version of the schema that the row was written in", "status": "whether there is a value: see below"}
    return table(["field", "type", "since", "meaning"],
                 [[f"`{name}`", kind(field), str(since(row, name)), field.get("description", about.get(name, ""))]
                  for name, field in row["properties"].items()])


def plain_fields(properties: dict, about: dict[str, str]) -> str:
    return table(["field", "type", "meaning"], [[f"`{name}`", kind(field), field.get("description", about.get(name, ""))]
                                                for name, field in properties.items()])


HEADER_ABOUT = {"version": "of moescope, or the name of another program", "build": "build type, compiler, -march, sanitizers",
                "device": "CPU or GPU by name", "libraries": "name to version", "started_utc": "ISO 8601"}


def counter_fields() -> str:
    catalogue = json.loads((ROOT / "profiler/counters/metric_catalogue.json").read_text(encoding="utf-8"))
    return table(["metric", "unit", "meaning"], [[f"`{m['name']}`", m["unit"], m["meaning"]] for m in catalogue["metrics"]])


def device_fields() -> str:
    """Every value of a device's file with what it holds there; names carry the units. Of the first that was compared with rows."""
    folder = min((ROOT / "data/devices").glob("*/calibration.json")).parent
    device = json.loads((folder / "device.json").read_text(encoding="utf-8"))

    def text(value):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    return table(["value", f"of `{folder.name}`"], [[f"`{name}`", text(entry["value"])] for name, entry in device["values"].items()], 1)


# ---- help

def run_program(program: Path, *arguments: str) -> str:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True, cwd=ROOT,
                          env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "NO_COLOR": "1", "COLUMNS": "100"})
    return done.stdout


def subcommands(program: Path) -> list[str]:
    text = run_program(program, "--help")
    listed = re.split(r"^commands:\s*\n", text, maxsplit=1, flags=re.M | re.I)
    if len(listed) != 2:
        raise ValueError("--help lists no commands")
    return re.findall(r"^  ([a-z][a-z-]*)(?:\s|$)", listed[1].split("\n\n")[0], flags=re.M)


def plain_help(text: str) -> str:
    """Help without what differs between machines: the program's own path."""
    return re.sub(r"^Usage: \S*moescope\b", "Usage: moescope", text, flags=re.M).rstrip()


def commands_page(program: Path) -> str:
    names = subcommands(program)
    parts = ["# Command reference", "",
             "What `moescope --help` and `moescope COMMAND --help` print. `scripts/update_docs.py` writes this page, and a test compares it.",
             "[Which command](../guide/commands.md) sorts them by question.", "",
             " · ".join(f"[{name}](#{name})" for name in names), "", "## moescope", "", "```text", plain_help(run_program(program, "--help")), "```"]
    for name in names:
        parts += ["", f"## {name}", "", "```text", plain_help(run_program(program, name, "--help")), "```"]
    return "\n".join(parts) + "\n"


# ---- all of it

def generated(program: Path) -> dict[Path, str]:
    """What every file should hold."""
    result = json.loads(run_program(program, "schema", "result"))
    experiment = json.loads(run_program(program, "schema", "experiment"))
    point = result["$defs"]["point_line"]["properties"]["point"]["properties"]
    parts = {
        "README.md": [("<!-- gpu-table: begin -->", "<!-- gpu-table: end -->", times_table(SHOWN, COMPARED))],
        "docs/reference/rows.md": [
            ("<!-- fields: row -->", "<!-- end -->", row_fields(result)),
            ("<!-- fields: header -->", "<!-- end -->", plain_fields(result["$defs"]["header"]["properties"], HEADER_ABOUT)),
            ("<!-- fields: point -->", "<!-- end -->", plain_fields(point, {"status": "ok when anything was measured"})),
            ("<!-- fields: counters -->", "<!-- end -->", counter_fields())],
        "docs/reference/files.md": [
            ("<!-- fields: experiment -->", "<!-- end -->", plain_fields(experiment["properties"], {})),
            ("<!-- fields: device -->", "<!-- end -->", device_fields())],
        "docs/python/measured.md": operator_parts(SHOWN),
        "docs/performance/index.md": [("<!-- kernels: now -->", "<!-- end -->", kernel_table(PROFILED))],
        f"docs/results/{SHOWN}.md": [
            (f"<!-- schedules: {SHOWN} -->", "<!-- end -->", times_table(SHOWN, COMPARED)),
            (f"<!-- others: {SHOWN} -->", "<!-- end -->", others_table(SHOWN))],
    }
    files = {}
    for name, changes in parts.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        for begin, end, body in changes:
            text = between(text, begin, end, body, name)
        files[ROOT / name] = text
    files[ROOT / "docs/reference/commands.md"] = commands_page(program)
    return files


def stale(program: Path) -> list[str]:
    """Files that are not what they should be."""
    return [str(path.relative_to(ROOT)) for path, text in generated(program).items()
            if not path.exists() or path.read_text(encoding="utf-8") != text]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--moescope", type=Path, default=ROOT / "build/cpu/experiments/moescope")
    options = parser.parse_args()
    program = options.moescope.resolve()
    if options.check:
        wrong = stale(program)
        if wrong:
            print(f"not what program and rows give: {', '.join(wrong)}. Update: scripts/update_docs.py", file=sys.stderr)
        return 1 if wrong else 0
    for path, text in generated(program).items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
