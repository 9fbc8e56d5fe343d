"""Tables of docs/python/measured.md, from the rows that scripts/record.sh's part `operators` records. scripts/update_docs.py calls it."""
from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
OURS, PLAIN, PUBLISHED, PROGRAM = "moescope.torch", "torch", "triton", "cuda"


def read(device: str, name: str) -> tuple[list[dict], str]:
    """Rows of results/DEVICE/NAME.jsonl, and what a caption says of them."""
    file = next(path for path in (ROOT / "results" / device / f"{name}.jsonl{packed}" for packed in ("", ".gz")) if path.exists())
    rows, said = [], ""
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if "header" in row:
                header = row["header"]
                said = (f"{header['device']}, {header['started_utc'][:10]}, PyTorch {header['libraries']['torch'].split('+')[0]}; "
                        f"`{file.relative_to(ROOT)}`")
            else:
                rows.append(row)
    return rows, said


def times(seconds: float | None, scale: float, digits: int) -> str:
    return "-" if seconds is None else f"{seconds * scale:.{digits}f}"


def ms(seconds: float | None) -> str:
    return "-" if seconds is None else times(seconds, 1e3, 3 if seconds < 1e-3 else 2)


def found(rows: list[dict], **where) -> float | None:
    """The value of the one row that is so; None where there is none, or it failed."""
    values = [row["value"] for row in rows if all(row[field] == value for field, value in where.items())]
    if len(values) > 1:
        raise ValueError(f"{len(values)} rows are {where}")
    return values[0] if values else None


def tests(device: str) -> str:
    """How many of the tests passed, in words."""
    rows, said = read(device, "op_tests")
    passed = [row for row in rows if row["metric"] == "test_passed"]
    failed = [row["workload"] for row in passed if row["value"] == 0]
    skipped = [row for row in passed if row["status"] == "skipped"]
    words = f"{sum(row['value'] == 1 for row in passed)} tests passed, {len(failed)} failed, {len(skipped)} were skipped"
    reasons = "; ".join(sorted({row["reason"] for row in skipped}))
    return (words + (f" ({reasons})" if reasons else "") + "." + (f" Failed: {', '.join(failed)}." if failed else "") + f"\n\n{said}")


def calls(device: str) -> tuple[list[str], list[list[str]], str]:
    """Microseconds on the CPU."""
    rows, said = read(device, "op_overhead")
    lines = []
    for name in ("torch.add", "select", "experts", "layer", "layer_output"):
        cells = [found(rows, metric="host_time_s", schedule=f"{name} {kind}") for kind in ("c", "function", "training", "step")]
        operator = found(rows, metric="host_time_s", schedule=f"{name} operator")
        older = [found(rows, metric="host_time_s", schedule=f"{name} {kind}") for kind in ("python", "python training")]
        lines.append([f"`{name}`", *(times(value, 1e6, 1) for value in (cells[0], cells[1], operator, *cells[2:])),
                      " / ".join(times(value, 1e6, 1) for value in older)])
    return ["call", "the library's function", "function", "operator", "function, autograd", "and its backward",
            "through Python: function / autograd"], lines, said


def points(rows: list[dict]) -> list[tuple[int, int]]:
    return sorted({(row["L"], row["K"]) for row in rows if row["metric"] == "time_s"})


def forward(device: str) -> tuple[list[str], list[list[str]], str]:
    rows, said = read(device, "op_overhead")
    rows = [row for row in rows if row["metric"] == "time_s" and row["direction"] == "forward"]
    lines = []
    for tokens, top_k in points(rows):
        at = [row for row in rows if (row["L"], row["K"]) == (tokens, top_k)]
        program = next((row["value"] for row in at if row["backend"] == PROGRAM), None)
        ours = found(at, backend=OURS, schedule="frozen graph")
        lines.append([f"{tokens}", ms(program), ms(ours) + (f" ({ours / program - 1:+.0%})" if ours and program else ""),
                      ms(found(at, backend=OURS, schedule="output")), ms(found(at, backend=PLAIN, schedule="dense_masked")),
                      ms(found(at, backend=PLAIN, schedule="compiled")), ms(found(at, backend=PUBLISHED, schedule="published"))])
    return ["L", "program", "ours, as a graph, bound known", "ours, called", "dense masked", "the same, compiled", "published"], lines, said


def steps(device: str) -> tuple[list[str], list[list[str]], str]:
    rows, said = read(device, "op_overhead")
    lines = []
    for tokens, top_k in points(rows):
        at = [row for row in rows if (row["L"], row["K"], row["direction"]) == (tokens, top_k, "backward")]

        def cell(backend, schedule):
            seconds = found(at, metric="time_s", backend=backend, schedule=schedule)
            extra = found(at, metric="step_bytes", backend=backend, schedule=schedule)
            return ms(seconds) + (f" ({extra / 2**20:.0f} MiB)" if extra is not None else "")
        lines.append([f"{tokens}", cell(OURS, "output step"), cell(OURS, "exact step"), cell(OURS, "output step graph"),
                      cell(OURS, "experts step"),
                      cell(PLAIN, "dense_masked step"), cell(PLAIN, "compiled step")])
    return ["L", "ours, layer", "with exact memory", "as a graph", "ours, pairs given", "dense masked", "the same, compiled"], lines, said


def published(device: str) -> tuple[list[str], list[list[str]], str]:
    """Of each file and direction: what was held against float64, and times."""
    rows, said = read(device, "published_tests")
    of = defaultdict(list)
    for row in rows:
        name, test = re.match(r"published:(\w+)::(\w+)\[", row["workload"]).groups()
        of[name, "backward" if "backward" in test else "forward"].append(row)
    lines = []
    for (name, direction), own in of.items():
        def values(metric, backend, own=own):
            return [row["value"] for row in own if row["metric"] == metric and row["backend"] == backend and row["value"] is not None]
        passed, exact = values("test_passed", OURS), exact_of(own)
        theirs = values("test_passed", PUBLISHED)
        errors = [max(values("relative_error", backend), default=None) for backend in (OURS, PLAIN, PUBLISHED)]
        spans = [values("time_s", backend) for backend in (OURS, PLAIN, PUBLISHED)]
        lines.append([f"`{name}`, {direction}", f"{len(passed)}",
                      f"{sum(passed):.0f} / {sum(count == 0 for count in exact)} / {sum(theirs):.0f}",
                      f"{sum(values('mismatched', OURS)):.0f} / {sum(exact):.0f}",
                      " / ".join("-" if error is None else f"{error:.1e}" for error in errors),
                      " / ".join(ms(median(each)) if each else "-" for each in spans)])
    return ["test", "cases", "without a mismatch: ours / exact / published", "elements beyond: ours / exact",
            "error: ours / PyTorch / published", "median ms: ours / PyTorch / published"], lines, said


def exact_of(rows: list[dict]) -> list[float]:
    """Elements of each test in which the exact result, rounded once, is beyond the tolerance. Of each test once: both runs, of ours and of
    the published package, have it."""
    seen = {}
    for row in rows:
        if row["metric"] == "mismatched" and row["backend"] == "rounded":
            seen.setdefault(row["workload"], row["value"])
    return list(seen.values())


def training(device: str) -> tuple[list[str], list[list[str]], str]:
    rows, said = read(device, "op_training")
    sizes = list(dict.fromkeys((row["d"], row["Nr"], row["K"], row["L"], row["dtype"]) for row in rows))
    lines = []
    for size in sizes:
        own = [row for row in rows if (row["d"], row["Nr"], row["K"], row["L"], row["dtype"]) == size]

        def by_seed(metric, backend, own=own):
            return {row["seed"]: row["value"] for row in own if row["metric"] == metric and row["backend"] == backend}
        ours, dense = by_seed("final_bits", OURS), by_seed("final_bits", PLAIN)
        apart = max(abs(ours[seed] - dense[seed]) for seed in ours)
        rates = [median(by_seed("tokens_per_s", backend).values()) for backend in (OURS, PLAIN)]
        lines.append([f"d {size[0]}, N {size[1] ** 2}, K {size[2]}, {size[4]}", f"{sum(ours.values()) / len(ours):.3f} / {sum(dense.values()) / len(dense):.3f}",
                      f"{apart:.4f}", f"{min(max(one.values()) - min(one.values()) for one in (ours, dense)):.4f}",
                      f"{rates[0]:.0f} / {rates[1]:.0f}", f"{rates[0] / rates[1]:.1f}x"])
    return ["model", "bits a byte at the end: ours / dense", "one seed, apart", "seeds, apart", "tokens/s: ours / dense", "ratio"], lines, said
