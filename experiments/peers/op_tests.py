#!/usr/bin/env python3
"""Runs the operators' tests on this machine's GPU and writes a row for each: what held, where and with which PyTorch.

  PYTHONPATH=python python3 experiments/peers/op_tests.py --out results/op-tests
  PYTHONPATH=python python3 experiments/peers/op_tests.py --out results/op-tests test_cuda.Backward

Rows have moescope's result schema: `workload` is the test, metric test_passed is 1 or 0, with the reason where it is 0; a skipped
test's value is null. test_s is how long it took. The exit status is 1 where one failed.
"""
import argparse
import pathlib
import sys
import time
import unittest

import torch_peers

TESTS = pathlib.Path(__file__).resolve().parents[2] / "python" / "tests"


class Point:
    """No layer: every test has its own."""

    system, activation, gates_mode, l2, seed = "omnimoe", "none", "none", "none", 0
    num_tokens = hidden_size = rows = cols = top_k = 0

    def __init__(self, test):
        self.workload = test

    def extents(self):
        return {}


class Recording(unittest.TextTestResult):
    """A row when a test ends; its first failure, of a subtest too, is the reason."""

    rows = None

    def startTest(self, test):
        super().startTest(test)
        self.began, self.reason, self.skipped_because = time.perf_counter(), None, None

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.reason = self.reason or self._words(err)

    def addError(self, test, err):
        super().addError(test, err)
        self.reason = self.reason or self._words(err)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.reason = self.reason or f"{subtest._subDescription()} {self._words(err)}"

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.skipped_because = reason

    def stopTest(self, test):
        super().stopTest(test)
        point = Point(test.id())
        if self.skipped_because is not None:
            self.rows.row(point, "none", "layer", "test_passed", "tests", None, 0, reason=self.skipped_because, status="skipped")
            return
        self.rows.row(point, "none", "layer", "test_passed", "tests", 0 if self.reason else 1, reason=self.reason or "")
        self.rows.row(point, "none", "layer", "test_s", "s", time.perf_counter() - self.began)

    @staticmethod
    def _words(err):
        return " ".join(f"{err[0].__name__}: {err[1]}".split())[:300]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for rows.jsonl")
    parser.add_argument("tests", nargs="*", default=["test_cuda", "test_cuda_framework", "test_torch"], help="as unittest names them")
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("op_tests: PyTorch is not installed")
    if not torch.cuda.is_available():
        sys.exit("op_tests: PyTorch sees no CUDA device")
    sys.path.insert(0, str(TESTS))
    import moescope

    Recording.rows = torch_peers.Rows(arguments.out, torch, {"moescope": moescope.library_version()})
    Recording.rows.backend = "moescope.torch"
    suite = unittest.defaultTestLoader.loadTestsFromNames(arguments.tests)
    done = unittest.TextTestRunner(verbosity=2, resultclass=Recording).run(suite)
    sys.exit(0 if done.wasSuccessful() else 1)


if __name__ == "__main__":
    main()
