#!/usr/bin/env python3
"""Runs the programs of a bundle (scripts/bundle.sh) on a machine with a GPU and records what they say as rows.

  gpu_evidence.py tests    BUNDLE OUT   every kernels_*_test; a skipped test counts as a failure
  gpu_evidence.py sanitize BUNDLE OUT   the same programs, reduced by a filter, under compute-sanitizer's four tools

Writes OUT/rows.jsonl in the schema of core/result.schema.json: metrics tests_passed, tests_failed and
sanitizer_findings, one row per program (and tool; both are named in `reason`). The run header is taken from the
run.json of a `moescope run --backend cuda` of the same bundle, so that device and git revision are the program's own.
Exit code 1 when anything failed or was found.
"""
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

# Every kernel runs at least once in what this keeps; the sanitizers make programs 10 to 100 times slower.
SANITIZER_FILTER = "-*Large*:*TableA*:*Million*:*Snapshot*"
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
        "stage": "layer", "backend": "cuda", "L": 0, "d": 0, "Nr": 0, "Nc": 0, "K": 0, "dtype": "all",
        "workload": "tests", "seed": 0, "l2_state": "warm", "source": "measured", "metric": metric, "value": value,
        "unit": unit, "samples": 1, "spread": None, "status": status, "reason": reason,
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


def sanitize(program, tool, head):
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "99", program, f"--gtest_filter={SANITIZER_FILTER}"]
    done = run(command)
    text = done.stdout + done.stderr
    summary = re.search(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)", text)
    ran = re.search(r"\[  PASSED  \] (\d+) test", text)
    if not summary or not ran:
        print(text[-3000:])
        return row(head, "sanitizer_findings", None, "findings", "failed", f"{tool} {program.name}: no summary"), True
    findings = int(summary.group(1) or summary.group(2))
    print(f"{program.name:45s} {tool:10s} {findings} findings, {ran.group(1)} tests passed")
    if findings or done.returncode:
        print(text[-4000:])
    return row(head, "sanitizer_findings", findings, "findings", "ok", f"{tool} {program.name}"), bool(findings or done.returncode)


def main():
    if len(sys.argv) != 4 or sys.argv[1] not in ("tests", "sanitize"):
        sys.exit(__doc__)
    mode, bundle, out = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    programs = sorted(bundle.glob("kernels_*_test"))
    if not programs:
        sys.exit(f"no kernels_*_test in {bundle}")
    out.mkdir(parents=True, exist_ok=True)
    bad = False
    with tempfile.TemporaryDirectory() as scratch, open(out / "rows.jsonl", "w") as file:
        head = header(bundle, scratch)
        file.write(json.dumps(head) + "\n")
        for program in programs:
            if mode == "tests":
                rows, failed = run_tests(program, scratch, head)
            else:
                results = [sanitize(program, tool, head) for tool in TOOLS]
                rows, failed = [r for r, _ in results], any(f for _, f in results)
            bad |= failed
            file.writelines(json.dumps(r) + "\n" for r in rows)
            file.flush()
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
