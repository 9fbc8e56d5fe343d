#!/usr/bin/env python3
"""Runs the programs of a bundle (scripts/bundle.sh) on a machine with a GPU and records what they say as rows.

  gpu_evidence.py tests    BUNDLE OUT [COMMAND...]
                                        every kernels_*_test and cupti_*_test; a skipped test counts as a failure. COMMAND runs
                                        beside those that may share the GPU
  gpu_evidence.py sanitize BUNDLE OUT   every kernels_*_test, reduced by a filter, under compute-sanitizer's four tools

Writes OUT/rows.jsonl in the schema of core/results/result.schema.json: metrics tests_passed, tests_failed,
sanitizer_findings and sanitizer_findings_in_libraries, one row per program (and tool; both are named in `reason`). The run header is taken from the
run.json of a `moescope run --backend cuda` of the same bundle, so that device and git revision are the program's own.
Exit code 1 when anything failed or was found.
"""
import concurrent.futures
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

# Every kernel runs at least once in what this keeps; the sanitizers make programs 10 to 100 times slower.
SANITIZER_FILTER = ("*L1_d32_*:*L3_d8_N48x16_*:ResolvesTies*L5_*:*RouterSelectGpuValues*:Dtypes/RouterProject*:Dtypes/SharedMlp*:"
                    "RoundOutput*:*GraphReplayEqualsPlainLaunches*:*FixedRoutingSkipsTheRouter*:*MixesStripsAndGroups*:"
                    "ExpertsStaircase.AddendIsAddedOnce:ExpertsStaircase.TilesOfAnyFill*:*/StripsGpu*/L33_*:*/StripsGpu*/L130_*:*OnStrips*:*MemoryStream*:"
                    "*GroupedGemmGpu.EveryActivation*:*FfnRouterGpu*_L5_*:*FfnRouterGpu*_L40_*:*SystemsGpu.ReplayEqualsPlainLaunches*:"
                    "*SystemsGpu.SelectAsTheReferenceDoes*:*SystemsGpuValues.ReluGates*:*MaskedGpu.TheSameChoiceOfSeveralHeadsAddsUp*:*MaskedGpu.AllHeadsMayChooseAllExperts*")
SANITIZER_TIMEOUT_S = 100
# These read how much memory the GPU has left, or its counters, so nothing else may run.
ALONE = ("kernels_backend_test", "kernels_systems_test", "cupti_counters_test")
NO_KERNELS = ("kernels_gpu_rates_test",)  # host code that reads recorded rows: CI runs it, and needs no GPU for it
NOT_SANITIZED = ("kernels_cublas_lt_test",)  # launches cuBLASLt's kernels only
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


def run(command, **options):
    return subprocess.run(command, capture_output=True, text=True, **options)


def header(bundle, scratch):
    out = pathlib.Path(scratch, "header")
    run([bundle / "moescope", "run", "--backend", "cuda", "--preset", "tiny", "--output", out], check=True)
    line = json.loads((out / "run.json").read_text())
    line["header"]["command_line"] = " ".join(sys.argv)
    return line


def row(head, metric, value, unit, status, reason):
    return {
        "schema_version": head["schema_version"], "run_id": head["run_id"], "system": "omnimoe", "schedule": "all",
        "stage": "layer", "backend": "cuda", "L": 0, "d": 0, "Nr": 0, "Nc": 0, "K": 0, "shared_size": None,
        "B": None, "tile_tokens": None, "dtype": "none", "activation": "none", "gates": "none",
        "workload": "tests", "seed": 0, "l2_state": "warm", "source": "measured", "metric": metric, "value": value,
        "unit": unit, "samples": 1, "spread": None, "status": status, "reason": reason,
        "point": "", "repro": head["header"]["command_line"],
    }


def run_tests(program, scratch, head):
    report = pathlib.Path(scratch, program.name + ".json")
    environment = dict(os.environ, MOESCOPE_REQUIRE_GPU="1")
    done = run([program, f"--gtest_output=json:{report}"], env=environment)
    if not report.exists():
        print(done.stdout[-2000:], done.stderr[-2000:])
        return [row(head, "tests_failed", None, "tests", "failed", f"{program.name}: exit code {done.returncode}")], True
    summary = json.loads(report.read_text())
    skipped = sum(test.get("result") == "SKIPPED" for suite in summary["testsuites"] for test in suite["testsuite"])
    failed = summary["failures"] + summary["errors"] + skipped
    print(f"{program.name:45s} {summary['tests'] - failed:4d} passed {failed:4d} failed {summary['time']}")
    if failed:
        print(done.stdout[-3000:])
    return [row(head, "tests_passed", summary["tests"] - failed, "tests", "ok", program.name),
            row(head, "tests_failed", failed, "tests", "ok", program.name)], failed > 0


def count_findings(text):
    """Findings in our kernels and in NVIDIA's libraries: a report is a block that names the kernel it is about."""
    ours = libraries = 0
    for block in re.split(r"^=========\s*$", text, flags=re.M):
        if re.search(r"Race reported|Invalid |Uninitialized |Barrier error|Potential |leaked|Program hit", block):
            if re.search(r"nvjet|cusparse|cublas|cutlass", block) and "moescope" not in block:
                libraries += 1
            else:
                ours += 1
    return ours, libraries


def sanitize(job):
    program, tool, head = job
    command = ["compute-sanitizer", "--tool", tool, program, f"--gtest_filter={SANITIZER_FILTER}"]
    what = f"{tool} {program.name}"
    try:
        done = run(command, timeout=SANITIZER_TIMEOUT_S,
                   env=dict(os.environ, MOESCOPE_REQUIRE_GPU="1", MOESCOPE_SANITIZER="1"))
    except subprocess.TimeoutExpired:
        print(f"{what}: no result in {SANITIZER_TIMEOUT_S} s")
        return [row(head, "sanitizer_findings", None, "findings", "failed", f"{what}: no result in {SANITIZER_TIMEOUT_S} s")], True
    text = done.stdout + done.stderr
    ran = re.search(r"\[  PASSED  \] (\d+) test", text)
    if "SUMMARY" not in text or not ran or int(ran.group(1)) == 0:
        print(what, text[-3000:])
        return [row(head, "sanitizer_findings", None, "findings", "failed", f"{what}: tests did not pass")], True
    ours, libraries = count_findings(text)
    print(f"{what:55s} {ran.group(1):>3s} tests passed, {ours} findings, {libraries} in NVIDIA's libraries")
    if ours:
        print(text[:4000])
    return [row(head, "sanitizer_findings", ours, "findings", "ok", what),
            row(head, "sanitizer_findings_in_libraries", libraries, "findings", "ok", what)], ours > 0


def main():
    if len(sys.argv) < 4 or (sys.argv[1] == "sanitize" and len(sys.argv) > 4) or sys.argv[1] not in ("tests", "sanitize"):
        sys.exit(__doc__)
    mode, bundle, out = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    programs = sorted(path for path in bundle.glob("kernels_*_test") if path.name not in NO_KERNELS)
    if mode == "tests":  # CUPTI and compute-sanitizer do not go together
        programs += sorted(bundle.glob("cupti_*_test"))
    if not programs:
        sys.exit(f"no kernels_*_test in {bundle}")
    out.mkdir(parents=True, exist_ok=True)
    bad = False
    with tempfile.TemporaryDirectory() as scratch, open(out / "rows.jsonl", "w") as file:
        head = header(bundle, scratch)
        file.write(json.dumps(head) + "\n")
        if mode == "tests":
            together = [program for program in programs if program.name not in ALONE]
            alone = [program for program in programs if program.name in ALONE]
            results = [run_tests(program, scratch, head) for program in alone]
            beside = subprocess.Popen(sys.argv[4:]) if len(sys.argv) > 4 else None
            pool = concurrent.futures.ThreadPoolExecutor(6)
            results = itertools.chain(results, pool.map(lambda program: run_tests(program, scratch, head), together))
        else:  # several at once: the tools keep a CPU core busy, not the GPU
            jobs = [(program, tool, head) for program in programs if program.name not in NOT_SANITIZED for tool in TOOLS]
            results = concurrent.futures.ThreadPoolExecutor(8).map(sanitize, jobs)
        for rows, failed in results:
            bad |= failed
            file.writelines(json.dumps(r) + "\n" for r in rows)
            file.flush()
        if mode == "tests" and beside is not None:
            bad |= beside.wait() != 0
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
