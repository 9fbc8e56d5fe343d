#!/usr/bin/env python3
"""Prints the slowest compilations and tests of build trees, so that what makes CI slow is seen.

Usage: scripts/slowest.py [--count N] TREE...
Compilations are read from TREE/.ninja_log (wall seconds, other jobs beside them). Tests are read from what programs wrote
to TREE/Testing/*.json, or, where each is a process, from TREE/Testing/Temporary/CTestCostData.txt: ctest's mean seconds.
"""
import argparse
import json
import pathlib


def compilations(tree):
    """(seconds, object) of the newest build of each output."""
    log = tree / ".ninja_log"
    if not log.exists():
        return []
    newest = {}
    for line in log.read_text().splitlines()[1:]:
        start, end, _, output, _ = line.split("\t")
        newest[output] = (int(end) - int(start)) / 1000
    return [(seconds, output) for output, seconds in newest.items()]


def tests(tree):
    """(seconds, test) as last measured."""
    written = sorted((tree / "Testing").glob("*.json"))
    if written:
        suites = [suite for file in written for suite in json.loads(file.read_text())["testsuites"]]
        return [(float(test["time"].rstrip("s")), f"{suite['name']}.{test['name']}") for suite in suites for test in suite["testsuite"]]
    costs = tree / "Testing" / "Temporary" / "CTestCostData.txt"
    if not costs.exists():
        return []
    rows = []
    for line in costs.read_text().splitlines():
        if line.startswith("---"):
            break
        name, _, seconds = line.rsplit(" ", 2)
        rows.append((float(seconds), name))
    return rows


def main():
    parser = argparse.ArgumentParser(description="The slowest compilations and tests of build trees.")
    parser.add_argument("trees", nargs="+", type=pathlib.Path, metavar="TREE")
    parser.add_argument("--count", type=int, default=10, help="how many of each (default 10)")
    arguments = parser.parse_args()
    for what, read in (("compilation", compilations), ("test", tests)):
        rows = [(seconds, f"{tree.name}: {name}") for tree in arguments.trees for seconds, name in read(tree)]
        if not rows:
            continue
        print(f"slowest {what}s (of {len(rows)}, together {sum(row[0] for row in rows):.0f} s)")
        for seconds, name in sorted(rows, reverse=True)[: arguments.count]:
            print(f"  {seconds:7.1f} s  {name}")


if __name__ == "__main__":
    main()
