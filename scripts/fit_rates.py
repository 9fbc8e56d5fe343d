#!/usr/bin/env python3
"""Fits the rates of core/cost/auto_schedule's cost model to recorded rows and writes them as a C++ table.

Usage: scripts/fit_rates.py kernels/h100_rates.inc results/h100/compare-*.jsonl.gz [--held-out FILE...]

Per schedule, over all points of the rows (bf16, cold L2): fixed_s, memory, cache and flop rates that minimise the
sum of squared log ratios of predicted and measured time, time being that of the schedule and expert stages. A rate
that never binds is kept at its upper bound. Prints how well the model does: the largest ratio either way per
schedule, and for every point what the model chooses and how much longer that takes than the fastest candidate recorded
there, in these stages and as a layer; the same for the points of files held out of the fit.
"""
import gzip
import json
import math
import sys
from collections import defaultdict

ANALYTIC = ("hbm_read_bytes", "hbm_write_bytes", "l2_read_bytes", "l2_write_bytes", "executed_flop", "useful_flop")
METRICS = ANALYTIC + ("effective_experts", "time_s")
EXPERT_STAGES = ("experts", "expert_scores", "expert_combine")
# schedule: (counts masked-out products, what is read again comes back soon, the three times overlap, widest grid or
# None); what the kernels do, not fitted. A grid row of more than 320 experts is cut into segments, for each of which rows
# alone gather X and add to Y again; the analytic bytes count them once.
CANDIDATES = {
    "token_centric": (False, False, True, None),
    "staircase": (True, True, True, None),
    "staircase:rows": (True, True, True, 320),
    "dense_masked": (True, True, True, None),
}
BOUNDS = {"fixed_s": (1e-6, 1e-3), "memory": (5e11, 3.35e12), "cache": (5e11, 2e13), "flop": (1e12, 9.9e14)}


def read_points(paths):
    """{(L, d, Nr, Nc, K, workload): {schedule: numbers}}; numbers are summed over the stages that count. Where several
    files hold a schedule at a point, the last one counts."""
    points = {}
    cache_bytes = set()
    for path in paths:
        of_file = defaultdict(lambda: defaultdict(lambda: defaultdict(float)))
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if "header" in row:
                    cache_bytes.add(row["header"]["machine"]["l2_bytes"])
                    continue
                if row.get("status") != "ok" or row["dtype"] != "bf16" or row["l2_state"] == "warm":
                    continue
                if row["metric"] not in METRICS or (row["metric"] in ANALYTIC and row["source"] != "analytic"):
                    continue
                point = of_file[tuple(row[k] for k in ("L", "d", "Nr", "Nc", "K", "workload"))]
                metric, value = row["metric"], row["value"]
                if metric == "effective_experts":
                    point["skew"]["effective_experts"] = value
                elif row["schedule"] != "none" and row["stage"] in EXPERT_STAGES:
                    point[row["schedule"]][metric] += value
                elif row["schedule"] != "none" and row["stage"] == "schedule" and metric == "time_s":
                    point[row["schedule"]][metric] += value
                elif row["schedule"] != "none" and row["stage"] == "layer" and metric == "time_s":
                    point[row["schedule"]]["layer_s"] = value
        for key, point in of_file.items():
            points.setdefault(key, {}).update(point)
    if len(cache_bytes) != 1:
        sys.exit(f"the rows are of devices with L2 caches of {sorted(cache_bytes)} bytes; give one device's")
    return points, cache_bytes.pop()


def inputs_of(key, point, schedule, cache_bytes):
    masked, near = CANDIDATES[schedule][:2]
    numbers = point[schedule]
    compulsory = numbers["hbm_read_bytes"] + numbers["hbm_write_bytes"]
    requested = numbers["l2_read_bytes"] + numbers["l2_write_bytes"]
    rows_bytes = 2 * point["skew"]["effective_experts"] * key[1] * 2
    missed = 0 if near else max(0.0, 1 - cache_bytes / rows_bytes)
    memory = compulsory + missed * max(0.0, requested - compulsory)
    return memory, requested, numbers["executed_flop" if masked else "useful_flop"], numbers["time_s"]


def holds_for(key, schedule):
    widest = CANDIDATES[schedule][3]
    return widest is None or key[3] <= widest


def predict(schedule, rates, memory, requested, flop):
    times = (memory / rates["memory"], requested / rates["cache"], flop / rates["flop"])
    return rates["fixed_s"] + (max(times) if CANDIDATES[schedule][2] else sum(times))


def fit(schedule, samples):
    def loss(rates):
        return sum(math.log(predict(schedule, rates, *s[:3]) / s[3]) ** 2 for s in samples)

    rates = {"fixed_s": min(s[3] for s in samples) * 0.8, **{k: BOUNDS[k][1] for k in ("memory", "cache", "flop")}}
    best = loss(rates)
    step = 2.0
    while step > 1.0005:
        improved = False
        for name, (low, high) in BOUNDS.items():
            for factor in (step, 1 / step):
                trial = {**rates, name: min(max(rates[name] * factor, low), high)}
                if (value := loss(trial)) < best - 1e-12:
                    rates, best, improved = trial, value, True
        if not improved:
            step = math.sqrt(step)
    return rates


def report(name, points, fitted, cache_bytes):
    losses, of_layers = [], []
    for key, point in sorted(points.items()):
        times = {s: point[s]["time_s"] for s in CANDIDATES if s in point}
        predicted = {s: predict(s, fitted[s], *inputs_of(key, point, s, cache_bytes)[:3]) for s in times if holds_for(key, s)}
        chosen = min(predicted, key=predicted.get)
        losses.append(times[chosen] / min(times.values()))
        of_layers.append(point[chosen]["layer_s"] / min(point[s]["layer_s"] for s in times))
        print(f"L {key[0]} grid {key[2]}x{key[3]} K {key[4]} {key[5]}: {chosen}, {losses[-1]:.3f} of the fastest, "
              f"layer {of_layers[-1]:.3f} ({', '.join(f'{s} {times[s] * 1e3:.3f} ms, predicted {predicted[s] * 1e3:.3f}' if s in predicted else f'{s} {times[s] * 1e3:.3f} ms, no candidate' for s in times)})")
    for what, ratios in (("stages", losses), ("layers", of_layers)):
        print(f"{name}, {what}: time over the fastest, mean {sum(ratios) / len(ratios):.4f}, largest {max(ratios):.3f} "
              f"over {len(ratios)} points")


def main(target, paths, held_out):
    points, cache_bytes = read_points(paths)
    fitted = {}
    for schedule in CANDIDATES:
        samples = [inputs_of(k, p, schedule, cache_bytes) for k, p in points.items() if schedule in p and holds_for(k, schedule)]
        if not samples:
            sys.exit(f"no point with {schedule}")
        fitted[schedule] = fit(schedule, samples)
        ratios = [predict(schedule, fitted[schedule], *s[:3]) / s[3] for s in samples]
        print(f"{schedule}: {fitted[schedule]}, predicted / measured {min(ratios):.2f} to {max(ratios):.2f}")
    report("fitted", points, fitted, cache_bytes)
    if held_out:
        others = {key: point for key, point in read_points(held_out)[0].items() if key not in points}
        report("held out", others, fitted, cache_bytes)
    with open(target, "w", encoding="utf-8") as out:
        out.write(f"// Written by scripts/fit_rates.py from {len(points)} points of recorded rows; do not edit.\n")
        for schedule, rates in fitted.items():
            flags = ", ".join(str(flag).lower() for flag in CANDIDATES[schedule] if flag is not None)
            numbers = ", ".join(f"{rates[k]:.3g}" for k in ("fixed_s", "memory", "cache", "flop"))
            out.write(f'ScheduleRates{{parse_schedule("{schedule}"), {numbers}, {flags}}},\n')


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    first = sys.argv.index("--held-out") if "--held-out" in sys.argv else len(sys.argv)
    main(sys.argv[1], sys.argv[2:first], sys.argv[first + 1:])
