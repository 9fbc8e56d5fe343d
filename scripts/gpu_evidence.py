#!/usr/bin/env python3
"""Runs the programs of a bundle (scripts/bundle.sh) on a machine with a GPU and records what they say as rows.

  gpu_evidence.py tests    BUNDLE OUT [COMMAND...]
                                        kernels_tests and cupti_tests; a skipped test counts as a failure. COMMAND runs beside
                                        those that may share the GPU
  gpu_evidence.py ranks    BUNDLE OUT   processes of a layer on two GPUs, killed and stopped (scripts/rank_failures.py)
  gpu_evidence.py sanitize BUNDLE OUT [PATTERN]
                                        compute-sanitizer's four tools: on kernels_tests, reduced by a filter, and on whole layers
                                        on wide, thin and odd grids under every schedule, forward and backward. PATTERN: only the runs whose name, tool
                                        first, has a match of this regular expression

Writes OUT/rows.jsonl in the schema of core/results/result.schema.json: metrics tests_passed and tests_failed, one row per test
suite, sanitizer_findings and sanitizer_findings_in_libraries, one row per tool and program or layer; all are named in `reason`.
The run header is taken from the run.json of a `moescope run --backend cuda` of the same bundle, so that device and git revision
are the program's own. Exit code 1 when anything failed or was found.
"""
import collections
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "experiments" / "peers"))
import rank_failures  # noqa: E402
from row_writer import complete  # noqa: E402

# Every kernel runs at least once in what this keeps; the sanitizers make programs 10 to 100 times slower.
SANITIZER_FILTER = ("*L1_d32_*:*L3_d8_N48x16_*:ResolvesTies*L5_*:*RouterSelectGpuValues*:Dtypes/RouterProject*:Dtypes/SharedMlp*:"
                    "RoundOutput*:*GraphReplayEqualsPlainLaunches*:*FixedRoutingSkipsTheRouter*:*MixesStripsAndGroups*:"
                    "ExpertsStaircase.AddendIsAddedOnce:ExpertsStaircase.TilesOfAnyFill*:*/StripsGpu*/L33_*:*/StripsGpu*/L130_*:*OnStrips*:*MemoryStream*:"
                    "*GroupedGemmGpu.EveryActivation*:*FfnRouterGpu*_L5_*:*FfnRouterGpu*_L40_*:*SystemsGpu.ReplayEqualsPlainLaunches*:"
                    "*ExpertsDgrad*L3_d8_N768*:*ExpertsWgrad*L3_d8_N768*:*RouterBackward*L3_*:StripsBackward.EqualsThePlainLoopOnASmallGrid:"
                    "StripsBackward.TokensAreOrderedAndEntriesFound:StripsBackward.ForwardKeepsScores:"
                    "*SystemsGpu.SelectAsTheReferenceDoes*:*SystemsGpuValues.ReluGates*:*MaskedGpu.TheSameChoiceOfSeveralHeadsAddsUp*:*MaskedGpu.AllHeadsMayChooseAllExperts*")
# Layers that no test has: strips shorter than a copy's 16 bytes, several segments a strip, rings that come round many times.
SANITIZED_LAYERS = ("-L 130 --grid 64x1600 -d 264 -K 300 --workload gaussian:1",
                    "-L 65 --grid 33x700 -d 40 -K 17 --shared-size 32 --workload zipf:1",
                    "-L 300 --grid 1000x100 -d 64 -K 64 --workload zipf:1")
SCHEDULES = ("token_centric", "expert_centric", "staircase", "staircase:atomics", "staircase:rows", "staircase:rows:atomics",
             "dense_masked", "sparse_library", "auto")
BACKWARD_SCHEDULES = ("token_centric", "staircase", "staircase:atomics", "dense_masked")
TOOLS = ("racecheck", "memcheck", "initcheck", "synccheck")  # the slowest first, so that none is waited for alone
SANITIZER_TIMEOUT_S = int(os.environ.get("SANITIZER_TIMEOUT_S", "150"))
SANITIZER_SHARDS = 6
TEST_SHARDS = 6
# These read how much memory the GPU has left, or its counters, so nothing else may run.
ALONE = "CudaBackend*:SystemsGpu*:*/SystemsGpu*:LayerMemory*:SystemMemory*:MaskedMemory*:*TakesTheMemoryThatWasPlannedBefore"
# Host code that reads the checkout's data, which lies elsewhere there: CI runs it, and needs no GPU for it.
NO_KERNELS = "ProductKeyForm.*"


def run(command, **options):
    return subprocess.run(command, capture_output=True, text=True, **options)


def header(bundle, scratch):
    out = pathlib.Path(scratch, "header")
    run([bundle / "moescope", "run", "--backend", "cuda", "--preset", "tiny", "--output", out], check=True)
    line = json.loads((out / "run.json").read_text())
    line["header"]["command_line"] = " ".join(sys.argv)
    return line


def row(head, metric, value, unit, status, reason):
    return complete({"schedule": "all", "stage": "layer", "backend": "cuda", "L": 0, "d": 0, "Nr": 0, "Nc": 0, "K": 0,
                     "dtype": "none", "workload": "tests", "l2_state": "warm", "metric": metric, "value": value, "unit": unit,
                     "status": status, "reason": reason, "repro": head["header"]["command_line"]}, head["run_id"])


class Tests:
    """Passed and failed tests of every suite, from the reports of all shards."""

    def __init__(self, scratch):
        self.scratch = scratch
        self.passed = collections.Counter()
        self.failed = collections.Counter()

    def run(self, program, chosen, shard=0, shards=1):
        """Returns (program, exit code, report or None, output); counts nothing, so that it may run in a thread."""
        report = pathlib.Path(self.scratch, f"{program.name}-{abs(hash(chosen))}-{shard}.json")
        environment = dict(os.environ, MOESCOPE_REQUIRE_GPU="1", GTEST_TOTAL_SHARDS=str(shards), GTEST_SHARD_INDEX=str(shard))
        done = run([program, f"--gtest_filter={chosen}", f"--gtest_output=json:{report}"], env=environment)
        return program, done, json.loads(report.read_text()) if report.exists() else None

    def count(self, result):
        program, done, summary = result
        if summary is None:
            print(done.stdout[-2000:], done.stderr[-2000:])
            self.failed[f"{program.name}: exit code {done.returncode}"] += 1
            return
        bad = False
        for suite in summary["testsuites"]:
            name = f"{program.name} {suite['name']}"
            for test in suite["testsuite"]:
                if test.get("status") == "NOTRUN":
                    continue
                skipped = test.get("result") == "SKIPPED"
                failed = skipped or "failures" in test
                bad |= failed
                (self.failed if failed else self.passed)[name] += 1
        if bad or done.returncode:
            print(done.stdout[-3000:])

    def rows(self, head):
        for name in sorted(set(self.passed) | set(self.failed)):
            print(f"{name:70s} {self.passed[name]:4d} passed {self.failed[name]:4d} failed")
            yield row(head, "tests_passed", self.passed[name], "tests", "ok", name)
            yield row(head, "tests_failed", self.failed[name], "tests", "ok", name)


def tests(bundle, scratch, head, beside):
    """Rows, and whether anything failed."""
    done = Tests(scratch)
    done.count(done.run(bundle / "kernels_tests", ALONE))
    done.count(done.run(bundle / "cupti_tests", "*"))  # CUPTI and compute-sanitizer do not go together
    command = subprocess.Popen(beside) if beside else None
    rest = f"*-{ALONE}:{NO_KERNELS}"
    with concurrent.futures.ThreadPoolExecutor(TEST_SHARDS) as pool:
        for result in pool.map(lambda shard: done.run(bundle / "kernels_tests", rest, shard, TEST_SHARDS), range(TEST_SHARDS)):
            done.count(result)
    failed = command is not None and command.wait() != 0
    rows = list(done.rows(head))
    return rows, failed or sum(done.failed.values()) > 0


def ranks(bundle, head):
    """Rows of rounds that held and that did not, and whether one did not."""
    played = rank_failures.all_rounds(bundle / "moescope", rounds=20, timeout=2, at_once=6)
    rows = []
    for what, held, not_held in rank_failures.summaries(played):
        print(f"{what}: {held} held, {not_held} did not")
        rows += [row(head, "tests_passed", held, "tests", "ok", what), row(head, "tests_failed", not_held, "tests", "ok", what)]
    return rows, any(not result["held"] for result in played)


def count_findings(text):
    """Findings in our kernels and in NVIDIA's libraries: a report is a block that names the kernel it is about, on a line
    "at KERNEL" or in the report itself; our program stands in the host's backtrace of both."""
    ours = libraries = 0
    for block in re.split(r"^=========\s*$", text, flags=re.M):
        if re.search(r"Race reported|Invalid |Uninitialized |Barrier error|Potential |leaked|Program hit", block):
            device = block.split("host backtrace")[0]
            if re.search(r"nvjet|cusparse|cublas|cutlass", device) and "moescope::" not in device:
                libraries += 1
            else:
                ours += 1
    return ours, libraries


def sanitize(job):
    tool, what, command, shard, head = job
    environment = dict(os.environ, MOESCOPE_REQUIRE_GPU="1", MOESCOPE_SANITIZER="1")
    if shard is not None:
        environment |= {"GTEST_TOTAL_SHARDS": str(SANITIZER_SHARDS), "GTEST_SHARD_INDEX": str(shard)}
    what = f"{tool} {what}"

    def failure(why):
        print(f"{what}: {why}")
        return [row(head, "sanitizer_findings", None, "findings", "failed", f"{what}: {why}")], True

    try:
        done = run(["compute-sanitizer", "--tool", tool, *command], timeout=SANITIZER_TIMEOUT_S, env=environment)
    except subprocess.TimeoutExpired:
        return failure(f"no result in {SANITIZER_TIMEOUT_S} s")
    text = done.stdout + done.stderr
    if "SUMMARY" not in text:
        print(text[-3000:])
        return failure("no summary")
    if shard is not None and not re.search(r"\[  PASSED  \] [1-9]\d* test", text):
        print(text[-3000:])
        return failure("tests did not pass")
    ours, libraries = count_findings(text)
    if shard is None and done.returncode != 0 and ours + libraries == 0:
        print(text[-3000:])
        return failure(f"exit code {done.returncode}")
    sys.stdout.write(f"{what:110s} {ours} findings, {libraries} in NVIDIA's libraries\n")  # whole lines from all threads
    if ours:
        print(text[:4000])
    return [row(head, "sanitizer_findings", ours, "findings", "ok", what),
            row(head, "sanitizer_findings_in_libraries", libraries, "findings", "ok", what)], ours > 0


def sanitizer_jobs(bundle, head):
    for tool in TOOLS:
        for layer in SANITIZED_LAYERS:
            for schedule in SCHEDULES:
                what = f"profile {layer} --schedule {schedule}"
                command = [bundle / "moescope", *what.split(), "--backend", "cuda", "--profile"]  # two runs, nothing timed
                yield tool, what, command, None, head
        for schedule in BACKWARD_SCHEDULES:
            what = f"run {SANITIZED_LAYERS[1]} --direction backward --schedule {schedule}"
            command = [bundle / "moescope", *what.split(), "--backend", "cuda", "--min-samples", "2", "--max-time", "0.01", "--quiet",
                       "--output", tempfile.mkdtemp()]
            yield tool, what, command, None, head
        for shard in range(SANITIZER_SHARDS):
            command = [bundle / "kernels_tests", f"--gtest_filter={SANITIZER_FILTER}"]
            yield tool, f"kernels_tests {shard + 1}/{SANITIZER_SHARDS}", command, shard, head


def main():
    if len(sys.argv) < 4 or (sys.argv[1] == "sanitize" and len(sys.argv) > 5) or sys.argv[1] not in ("tests", "ranks", "sanitize"):
        sys.exit(__doc__)
    mode, bundle, out = sys.argv[1], pathlib.Path(sys.argv[2]).resolve(), pathlib.Path(sys.argv[3])
    for program in ("moescope",) + {"tests": ("kernels_tests", "cupti_tests"), "sanitize": ("kernels_tests",), "ranks": ()}[mode]:
        if not (bundle / program).exists():
            sys.exit(f"{bundle}: has no {program}")
    out.mkdir(parents=True, exist_ok=True)
    bad = False
    with tempfile.TemporaryDirectory() as scratch, open(out / "rows.jsonl", "w") as file:
        head = header(bundle, scratch)
        file.write(json.dumps(head) + "\n")
        if mode == "tests":
            results = [tests(bundle, scratch, head, sys.argv[4:])]
        elif mode == "ranks":
            results = [ranks(bundle, head)]
        else:  # several at once: the tools keep a CPU core busy, not the GPU
            pattern = sys.argv[4] if len(sys.argv) > 4 else ""
            jobs = [job for job in sanitizer_jobs(bundle, head) if re.search(pattern, f"{job[0]} {job[1]}")]
            workers = max(4, (os.cpu_count() or 8) * 3 // 4)
            results = concurrent.futures.ThreadPoolExecutor(workers).map(sanitize, jobs)
        for rows, failed in results:
            bad |= failed
            file.writelines(json.dumps(r) + "\n" for r in rows)
            file.flush()
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
