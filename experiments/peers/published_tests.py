#!/usr/bin/env python3
"""The published repository's three test files against our operators (or its own), with validation on and a row for what they say.

  PYTHONPATH=python python3 experiments/peers/published_tests.py --published omni-moe --out results/published
  PYTHONPATH=python python3 experiments/peers/published_tests.py --published omni-moe --out results/published-own --own

--published is a checkout of HKUSTDial/omni-moe. Its tests run as they are, but that `omni_moe.ops.triton` is moescope.torch.published
(without --own), and that testing.run_benchmarks validates everywhere: as published it does so in one test of six.

The tests hold an operator against plain PyTorch in the tests' own type, whose products, sums and selections are rounded on their way: the
expected value is one of several that are as right. So the same formulas also run in float64, and there are rows (`workload`: the test) for
what each of these gives, column `backend`:
  moescope.torch, or triton with --own     what was asked for
  torch                                    the tests' own baseline
  rounded                                  the float64 result rounded once to the tests' type: no operator can be nearer
with metrics
  test_passed     1 where no mismatch was printed
  mismatched      elements beyond the published tolerance from the baseline
  relative_error  against float64, 2-norm, the worst of the outputs
  time_s          mean, and torch_peak_bytes, as the tests print them
"""
import argparse
import contextlib
import importlib
import io
import itertools
import pathlib
import sys
import types

import torch_peers

FILES = ("test_expert", "test_router", "test_mlp")
STAGES = {"test_expert": "experts", "test_router": "router_select", "test_mlp": "shared_mlp"}
TOLERANCES = {"bfloat16": (1e-3, 1e-3), "float32": (1e-5, 1e-8)}  # testing.run_benchmarks'


class Point:
    """What one test is of."""

    system, activation, gates_mode, l2, seed = "omnimoe", "silu", "none", "warm", 0

    def __init__(self, name, test, case, dtype):
        self.workload = f"published:{name}::{test.__name__}[{'-'.join(map(str, case))}]"
        self.num_tokens, self.hidden_size, self.rows, self.cols, self.top_k, self.shared_size = case[0], 0, 1, 1, 0, None
        if name == "test_expert":
            self.hidden_size, self.cols, self.top_k = case[1:]
        elif name == "test_router":
            self.rows = self.cols = case[1]
            self.top_k = case[2]
        else:
            self.hidden_size, self.shared_size = case[1:]
        self.direction = "backward" if "backward" in test.__name__ else "forward"
        self.dtype = {"bfloat16": "bf16", "float32": "fp32"}[dtype]

    def extents(self):
        return {"shared_size": self.shared_size}


class Rows(torch_peers.Rows):
    def put(self, backend, point, stage, metric, unit, value, samples=1, reason=""):
        self.writer.write(
            system=point.system, schedule="none", stage=stage, backend=backend, direction=point.direction, L=point.num_tokens,
            d=point.hidden_size, Nr=point.rows, Nc=point.cols, K=point.top_k, dtype=point.dtype, activation=point.activation,
            gates=point.gates_mode, workload=point.workload, seed=point.seed, l2_state=point.l2, metric=metric, value=value, unit=unit,
            samples=samples, spread=None, reason=reason, **point.extents())


def cases_of(test):
    """Dtypes and cases of a test's parametrize marks."""
    marks = {mark.args[0]: mark.args[1] for mark in test.pytestmark if mark.name == "parametrize"}
    return list(itertools.product(marks["dtype"], marks["case"]))


def tensors_of(torch, output):
    return [output] if torch.is_tensor(output) else [one for one in output if torch.is_tensor(one)]


def mismatched(torch, made, expected):
    """Elements beyond the published tolerance, as torch.testing.assert_close counts them."""
    count = 0
    for one, other in zip(made, expected, strict=True):
        rtol, atol = TOLERANCES[str(other.dtype).removeprefix("torch.")]
        # Both in the tests' type, the difference in float64.
        near = (one.double() - other.double()).abs() <= atol + rtol * other.double().abs()
        count += int((~near).sum())
    return count


def error_of(made, exact):
    errors = [((one.double() - other).norm() / other.norm().clamp(min=1e-300)).item() for one, other in zip(made, exact, strict=True)]
    return max(errors)


def exactly(torch, module, name, direction, arguments, case):
    """The baseline's outputs in float64: of the tensors that a test made."""
    forward = getattr(module, f"pytorch_{name.removeprefix('test_')}_forward")
    inputs = [one for one in arguments if torch.is_tensor(one)]
    if direction == "backward":
        inputs = inputs[1:]  # the first one is the loss
    inputs = [one.detach().double().requires_grad_(direction == "backward") if one.is_floating_point() else one.long() for one in inputs]
    options = case[1:3] if name == "test_router" else ()
    output = forward(*inputs, *options)
    if direction == "forward":
        return tensors_of(torch, output)
    return list(torch.autograd.grad(output.sum(), [one for one in inputs if one.is_floating_point()]))


def same_selection(torch, arguments, made, exact):
    """Whether gradients of a router's logits are those of some K best sums: which of two equal sums is taken is nobody's to say. Of each
    token the sum of its K scores is that of the K best, and rows and columns have K each."""
    x, y = (one.detach().double() for one in arguments[1:3])
    score = lambda of: (of[0].double() * x).sum(1) + (of[1].double() * y).sum(1)  # noqa: E731
    return bool(torch.equal(made[0].sum(1).double(), exact[0].sum(1)) and torch.equal(made[1].sum(1).double(), exact[1].sum(1))
                and torch.allclose(score(made), score(exact), rtol=1e-12, atol=1e-9))


def words_of(failure):
    """What lies at the bottom of it: Triton's compiler wraps errors in errors."""
    while failure.__cause__ is not None:
        failure = failure.__cause__
    return f"{type(failure).__name__}: {' '.join(str(failure).split())[-250:]}"


class Recorded:
    """testing.run_benchmarks with validation, that keeps what it saw."""

    def __init__(self, torch, testing):
        self.torch, self.run, self.testing = torch, testing.run_benchmarks, testing
        self.results, self.arguments, self.outputs, self.said, self.failed = [], None, {}, "", None

    def __call__(self, impls, factory, *, flops, config=None, validate=False):
        self.results, self.outputs, self.said, self.failed, self.arguments = [], {}, "", None, None
        impls = list(impls)
        for impl in impls:
            try:
                arguments, options = factory(impl)
                self.outputs[impl.name] = [one.detach() for one in tensors_of(self.torch, impl(*arguments, **options))]
                self.torch.cuda.synchronize()
                if self.arguments is None:
                    self.arguments = arguments
            except Exception as failure:
                self.failed = words_of(failure)
        if self.failed is not None:
            return []
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            self.results = self.run(impls, factory, flops=flops, config=config, validate=True)
        self.said = said.getvalue()
        return self.results


def run_test(torch, module, name, test, dtype, case, recorded, rows, backend):
    short = str(dtype).removeprefix("torch.")
    point, stage = Point(name, test, case, short), STAGES[name]
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            test(dtype, case)
        except Exception as failure:
            recorded.failed = recorded.failed or words_of(failure)
    label = point.workload.removeprefix("published:")
    if recorded.failed is not None:
        rows.put(backend, point, stage, "test_passed", "tests", 0, reason=recorded.failed)
        print(f"{label}: failed: {recorded.failed[:150]}", flush=True)
        return
    passed = "mismatch" not in recorded.said
    ours, theirs = recorded.outputs["triton"], recorded.outputs["pytorch"]
    exact = [one.detach() for one in exactly(torch, module, name, point.direction, recorded.arguments, case)]
    rounded = [one.to(other.dtype) for one, other in zip(exact, theirs, strict=True)]
    counts = {backend: mismatched(torch, ours, theirs), "rounded": mismatched(torch, rounded, theirs)}
    errors = {backend: error_of(ours, exact), "torch": error_of(theirs, exact), "rounded": error_of(rounded, exact)}
    reason = "" if passed else f"mismatch printed: {counts[backend]} of {sum(one.numel() for one in theirs)} elements"
    if not passed and name == "test_router" and point.direction == "backward":
        reason += "; a valid selection among equal sums" if same_selection(torch, recorded.arguments, ours, exact) else "; no valid selection"
    rows.put(backend, point, stage, "test_passed", "tests", int(passed), reason=reason)
    for which, count in counts.items():
        rows.put(which, point, stage, "mismatched", "elements", count)
    for which, error in errors.items():
        finite = error == error and error != float("inf")
        rows.put(which, point, stage, "relative_error", "fraction", error if finite else None, reason="" if finite else "not finite")
    seconds = {}
    for result in recorded.results:
        which = backend if result.impl.name == "triton" else "torch"
        seconds[which] = result.mean_ms / 1e3
        rows.put(which, point, stage, "time_s", "s", seconds[which], len(result.timings_ms))
        rows.put(which, point, stage, "torch_peak_bytes", "bytes", result.peak_mem_allocated_bytes)
    print(f"{label}: {'passed' if passed else reason}; {counts['rounded']} of the exact result rounded; errors {errors[backend]:.1e}, "
          f"baseline {errors['torch']:.1e}; {seconds[backend] * 1e3:.3f} ms, baseline {seconds['torch'] * 1e3:.3f}", flush=True)


def with_pytest():
    """pytest, or what these tests need of it."""
    try:
        importlib.import_module("pytest")
        return
    except ImportError:
        pass

    class Mark:
        def __getattr__(self, name):
            def mark(*args, **_options):
                def put(test):
                    test.pytestmark = [*getattr(test, "pytestmark", []), types.SimpleNamespace(name=name, args=args)]
                    return test

                return put

            return mark

    module = types.ModuleType("pytest")
    module.mark = Mark()
    sys.modules["pytest"] = module


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", required=True, type=pathlib.Path, help="checkout of the published repository")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for rows.jsonl")
    parser.add_argument("--own", action="store_true", help="its own operators instead of ours")
    parser.add_argument("--files", nargs="+", default=list(FILES), choices=FILES)
    given = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("published_tests: PyTorch is not installed")
    if not torch.cuda.is_available():
        sys.exit("published_tests: PyTorch sees no CUDA device")
    tests = given.published.resolve() / "tests"
    if not (tests / "testing.py").is_file():
        sys.exit(f"published_tests: --published {given.published}: has no tests/testing.py")
    with_pytest()
    sys.path.insert(0, str(tests))
    libraries = {}
    if given.own:
        import published_op
        import triton

        published_op.load(given.published)
        libraries["triton"] = triton.__version__
    else:
        import moescope
        from moescope.torch import published

        for name in ("omni_moe", "omni_moe.ops", "omni_moe.ops.triton"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["omni_moe.ops.triton"] = published
        libraries["moescope"] = moescope.library_version()
    backend = "triton" if given.own else "moescope.torch"
    rows = Rows(given.out, torch, libraries)
    import testing

    recorded = testing.run_benchmarks = Recorded(torch, testing)
    modules = {name: importlib.import_module(name) for name in given.files}
    tests = [(name, one) for name, module in modules.items() for key, one in vars(module).items() if key.startswith("test_")]
    # Last what may leave the device in no state to go on.
    for name, test in sorted(tests, key=lambda one: ("backward" in one[1].__name__, one[0] == "test_expert")):
        for dtype, case in cases_of(test):
            run_test(torch, modules[name], name, test, dtype, case, recorded, rows, backend)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
