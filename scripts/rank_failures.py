#!/usr/bin/env python3
"""Kills or stops one process of a layer on several GPUs at a random moment, again and again, and holds what follows:
everybody is out in time, the message names a rank and a stage, and rows of points that were done stay whole.

  scripts/rank_failures.py MOESCOPE [--rounds 20] [--timeout 3]

Exit code 1 if one of them did not hold. Needs two GPUs. scripts/gpu_evidence.py records it as rows.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

# Many small points: some are done when it is broken.
SWEEP = {"name": "failures", "workloads": ["gaussian:1"], "schedules": ["staircase"], "max_time_s": 0.05,
         "axes": {"ranks": 2, "placement": "strips", "grid": "64x64", "hidden_size": 512, "top_k": 64,
                  "num_tokens": [64 * i for i in range(1, 600)]}}
OUT_SECONDS = 10


def children(process):
    path = pathlib.Path(f"/proc/{process}/task/{process}/children")
    try:
        return [int(child) for child in path.read_text().split()]
    except OSError:
        return []


def gone(process):
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


def play(program, how, whom, timeout, seed):
    """One round; what happened, as a dictionary."""
    folder = tempfile.mkdtemp(prefix="rank-failures-")
    output = pathlib.Path(folder) / "sweep"
    environment = dict(os.environ, MOESCOPE_RANK_TIMEOUT=str(timeout))
    sweep = pathlib.Path(folder) / "sweep.json"
    sweep.write_text(json.dumps(SWEEP))
    root = subprocess.Popen([program, "sweep", str(sweep), "--backend", "cuda", "-q", "--output", str(output)], env=environment, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True)
    result = {"how": how, "whom": whom, "seed": seed}
    try:
        begin = time.monotonic()
        while not children(root.pid) and root.poll() is None and time.monotonic() < begin + 30:
            time.sleep(0.005)
        other = (children(root.pid) or [0])[0]
        time.sleep(random.Random(seed).uniform(0, 3))
        result["ran_already"] = root.poll() is not None
        victim, witness = (other, root.pid) if whom == "rank 1" else (root.pid, other)
        broken = time.monotonic()
        try:
            os.kill(victim, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        except OSError:  # it had ended on its own: nothing is learnt
            return result | {"held": False, "in_time": False, "seconds": 0, "rows": 0, "message": root.communicate(timeout=20)[1]}
        limit = OUT_SECONDS + (timeout if how == "stopped" else 0)
        while not gone(witness) and time.monotonic() < broken + limit + 5:
            if witness == root.pid:
                root.poll()
            time.sleep(0.01)
        result["seconds"] = round(time.monotonic() - broken, 3)
        result["in_time"] = result["seconds"] < limit
        for process in (victim, witness):
            if process:
                try:
                    os.kill(process, signal.SIGKILL)
                except OSError:
                    pass
        result["message"] = root.communicate(timeout=20)[1].strip().splitlines()[-1:] if whom == "rank 1" else []
        result["named"] = whom != "rank 1" or any(re.search(r"rank 1, [a-z_]+: ", line) for line in result["message"])
        rows = list(output.glob("rows.jsonl"))
        whole = all(json.loads(line) for line in rows[0].read_text().splitlines()) if rows else True
        result["rows"] = len(rows[0].read_text().splitlines()) if rows else 0
        result["rows_whole"] = whole
    finally:
        root.kill()
        shutil.rmtree(folder, ignore_errors=True)
    result["held"] = result["in_time"] and result["named"] and result["rows_whole"]
    return result


def all_rounds(program, rounds, timeout, at_once):
    """What happened in every round, of all ways to fail."""
    todo = [(how, whom, 100 * i + j) for j, (how, whom) in
            enumerate([("killed", "rank 1"), ("stopped", "rank 1"), ("killed", "rank 0")]) for i in range(rounds)]
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda each: play(program, each[0], each[1], timeout, each[2]), todo))


def summaries(results):
    """(what was done, rounds that held, rounds that did not) of every way to fail."""
    for how, whom in dict.fromkeys((r["how"], r["whom"]) for r in results):
        some = [r for r in results if (r["how"], r["whom"]) == (how, whom)]
        held = sum(r["held"] for r in some)
        yield (f"{whom} {how} at a random moment: all others out, the slowest after {max(r['seconds'] for r in some)} s; rows were "
               f"there already in {sum(r['rows'] > 1 for r in some)} rounds, and whole", held, len(some) - held)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--timeout", type=float, default=3, help="seconds that ranks wait for each other")
    parser.add_argument("--at-once", type=int, default=4)
    arguments = parser.parse_args()
    results = all_rounds(arguments.program, arguments.rounds, arguments.timeout, arguments.at_once)
    for what, held, not_held in summaries(results):
        print(f"{what}: {held} held, {not_held} did not")
    for result in results:
        if not result["held"]:
            print(json.dumps(result))
    return 0 if all(result["held"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
