#!/usr/bin/env python3
"""Records what a run of scripts/fuzz.sh said as rows.

Usage: scripts/fuzz_rows.py LOGS RUN_JSON OUT
LOGS: a folder of libFuzzer's logs, TARGET_fuzz.log, made with -print_final_stats=1. RUN_JSON: run.json of a `moescope run` of the
same build, whose header the rows take. Two rows a target, named in `reason`: fuzz_inputs, and fuzz_findings (0 or 1: libFuzzer
stops at the first). Exit code 1 when a target found something or a log does not end as a run does.
"""
import json
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "experiments" / "peers"))
from row_writer import complete  # noqa: E402


def of_log(path):
    """(inputs, seconds, findings) of one target; inputs None where the log was cut."""
    text = path.read_text(errors="replace")
    found = int(bool(re.search(r"ERROR: (libFuzzer|\w+Sanitizer)|runtime error|Test unit written", text)))
    done = re.search(r"Done (\d+) runs in (\d+) second", text)
    return (int(done[1]), int(done[2]), found) if done else (None, None, found)


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    logs, head = sorted(pathlib.Path(sys.argv[1]).glob("*_fuzz.log")), json.loads(pathlib.Path(sys.argv[2]).read_text())
    if not logs:
        sys.exit(f"{sys.argv[1]}: no log of a target")
    bad, total = False, 0
    with open(sys.argv[3], "w") as file:
        file.write(json.dumps(head) + "\n")
        for log in logs:
            inputs, seconds, found = of_log(log)
            bad |= found > 0 or inputs is None
            total += inputs or 0
            print(f"{log.stem:28s} {inputs if inputs is not None else 'cut':>12} inputs {seconds or 0:5d} s {found} findings")
            for metric, unit, value in (("fuzz_inputs", "inputs", inputs), ("fuzz_findings", "findings", found)):
                row = {"schedule": "all", "stage": "layer", "backend": "cpu", "L": 0, "d": 0, "Nr": 0, "Nc": 0, "K": 0, "dtype": "none",
                       "workload": "fuzz", "l2_state": "warm", "metric": metric, "value": value, "unit": unit,
                       "status": "failed" if value is None else "ok",
                       "reason": f"{log.stem}: {'no end' if value is None else f'{seconds} s'}",
                       "repro": f"scripts/fuzz.sh {seconds or 600} tests/fuzz/{log.stem}.cpp"}
                file.write(json.dumps(complete(row, head["run_id"])) + "\n")
    print(f"{len(logs)} targets, {total} inputs")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
