"""Calls past Python (moescope.torch._calls.quick) against the same calls through it. Skips where PyTorch is not installed; where
PyTorch gives C no tensors (before 2.10) there is nothing but the calls through Python."""
import threading
import unittest

try:
    import torch
except ModuleNotFoundError:
    raise unittest.SkipTest("PyTorch is not installed") from None

import moescope
import moescope.torch as mt
import test_torch
from moescope.torch._calls import quick
from test_torch import K, NC, NR

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() and moescope.supports_cuda() else [])]


def inputs_on(device, requires_grad=False, tokens=7, width=8):
    """As test_torch.tensors() of a hidden size that a GPU takes, in float32; ids and gates behind them."""
    made = torch.Generator().manual_seed(3)
    normal = lambda *extents: torch.randn(*extents, generator=made).to(device).requires_grad_(requires_grad)  # noqa: E731
    ids = torch.randint(0, NR * NC, (tokens, 3), generator=made).to(device)
    return (normal(tokens, width), normal(tokens, NR), normal(tokens, NC), normal(NR * NC, width), normal(NR * NC, width),
            normal(4, width), normal(4, width), normal(width, 4), ids, normal(tokens, 3))


def calls_of(inputs, bound=None):
    x, rows, cols, w_in, w_out, gate, up, down, ids, gates = inputs
    made = {"select": lambda: mt.select(rows, cols, K)[1:2], "experts": lambda: (mt.experts(x, w_in, w_out, ids, gates),),
            "mlp": lambda: (mt.mlp(x, gate, up, down),), "layer": lambda: mt.layer(x, rows, cols, w_in, w_out, K)[:1],
            "layer with MLP": lambda: mt.layer(x, rows, cols, w_in, w_out, K, shared=(gate, up, down))[:1],
            "layer_output": lambda: (mt.layer_output(x, rows, cols, w_in, w_out, K, expert_bound=bound),)}
    return made


def needs_quick(test):
    def wrapped(self):
        mt.experts(*(inputs_on("cpu")[at] for at in (0, 3, 4, 8, 9)))
        if not quick.attached:
            self.skipTest(f"PyTorch {torch.__version__} gives C no tensors")
        self.addCleanup(quick.enable, True)
        return test(self)

    return wrapped


class Quick(unittest.TestCase):
    def test_attached_where_it_can_be(self):
        mt.experts(*(inputs_on("cpu")[at] for at in (0, 3, 4, 8, 9)))
        self.assertEqual(quick.attached, hasattr(torch.Tensor, "__dlpack_c_exchange_api__"))

    @needs_quick
    def test_values_and_gradients_are_the_same_bits(self):
        for device in DEVICES:
            bound = mt.expert_bound(*inputs_on(device)[3:5])
            for requires_grad in (False, True):
                inputs = inputs_on(device, requires_grad)
                learnt = [one for one in inputs if one.requires_grad]
                for name, call in calls_of(inputs, bound).items():
                    made = []
                    for on in (False, True, True):  # the first of the latter two may learn, the second finds
                        quick.enable(on)
                        outputs = call()
                        again = [one.detach().clone() for one in outputs]
                        if requires_grad:
                            given = [torch.linspace(-1, 1, one.numel(), device=device).view_as(one) for one in outputs]
                            again += torch.autograd.grad(outputs, learnt, given, allow_unused=True)
                        made.append(again)
                    for one in made[1:]:
                        for a, b in zip(made[0], one, strict=True):
                            self.assertTrue(a is b is None or torch.equal(a, b), (device, name, requires_grad))

    @needs_quick
    def test_what_was_learnt_is_found_and_nothing_else(self):
        x, rows, cols, w_in, w_out, gate, up, down, ids, gates = inputs_on("cpu")
        mt.experts(x, w_in, w_out, ids, gates)
        found = lambda *given: quick.experts(*given) is not None  # noqa: E731
        self.assertTrue(found(x, w_in, w_out, ids, gates, "silu"))
        self.assertTrue(found(x.clone(), w_in, w_out, ids.flip(0).contiguous(), gates, "silu"))
        for other in ((x, w_in, w_out, ids, gates, "gelu"), (x, w_in, w_out, ids.int(), gates, "silu"), (x[:-1], w_in, w_out, ids, gates, "silu"),
                      (x, w_in, w_out.t().contiguous().t(), ids, gates, "silu"), (x.double(), w_in, w_out, ids, gates, "silu"),
                      (x, w_in, w_out, ids, gates, "a name that is longer than any"), (x, w_in, w_out, ids, gates, 1),
                      (x, w_in, w_out, ids, gates), (x, w_in, w_out, ids, None, "silu"), (x, w_in, w_out, ids, "gates", "silu"),
                      (x.to_sparse(), w_in, w_out, ids, gates, "silu"), (x.to("meta"), w_in, w_out, ids, gates, "silu"),
                      (x.unsqueeze(0), w_in, w_out, ids, gates, "silu")):
            self.assertFalse(found(*other), [getattr(one, "shape", one) for one in other])
        self.assertFalse(found(x, w_in, w_out, ids + NR * NC, gates, "silu"))  # the library refuses it, Python says why
        with self.assertRaisesRegex(ValueError, "ids"):
            mt.experts(x, w_in, w_out, ids + NR * NC, gates)
        threads = torch.get_num_threads()
        torch.set_num_threads(threads + 1)
        try:
            self.assertFalse(found(x, w_in, w_out, ids, gates, "silu"))
        finally:
            torch.set_num_threads(threads)

    @needs_quick
    def test_roads_are_not_taken_where_somebody_stands_between(self):
        class Labelled(torch.Tensor):
            pass

        x, _, _, w_in, w_out, *_, ids, gates = inputs_on("cpu")
        mt.experts(x, w_in, w_out, ids, gates)
        road = lambda first=x: quick.experts_road(first, w_in, w_out, ids, gates, "silu")  # noqa: E731
        self.assertIsNotNone(road())
        self.assertIsNotNone(road(torch.nn.Parameter(x)).grad_fn)
        self.assertIsNone(road(x.as_subclass(Labelled)))
        with torch.autocast("cpu"):
            self.assertIsNone(road())
        with torch.utils._python_dispatch.TorchDispatchMode():
            self.assertIsNone(road())
        torch.func.grad(lambda one: self.assertIsNone(road(one)) or one.sum())(x)
        with torch.no_grad():
            self.assertIsNone(road(x.clone().requires_grad_()).grad_fn)
        quick.enable(False)
        self.assertIsNone(road())

    @needs_quick
    def test_threads_have_plans_of_their_own(self):
        x, _, _, w_in, w_out, *_, ids, gates = inputs_on("cpu", tokens=11)
        expected, answers = mt.experts(x, w_in, w_out, ids, gates), []

        def elsewhere():
            answers.append(quick.experts(x, w_in, w_out, ids, gates, "silu"))
            answers.append(mt.experts(x, w_in, w_out, ids, gates))
            answers.append(quick.experts(x, w_in, w_out, ids, gates, "silu"))

        for _ in range(2):
            answers.clear()
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            self.assertIsNone(answers[0])
            self.assertTrue(torch.equal(answers[1], expected) and torch.equal(answers[2], expected))

    @needs_quick
    def test_more_kinds_than_are_kept(self):
        w = torch.ones(4, 8)
        for tokens in (*range(1, 2100), 1):
            y = mt.experts(torch.ones(tokens, 8), w, w, torch.zeros(tokens, 1, dtype=torch.int32), torch.ones(tokens, 1), activation="relu")
            self.assertTrue(torch.equal(y, torch.full((tokens, 8), 8.0)), tokens)



class ThroughPython:
    """Tests that were written of calls in general, with none going past Python."""

    def setUp(self):
        super().setUp()
        mt.experts(*(inputs_on("cpu")[at] for at in (0, 3, 4, 8, 9)))
        quick.enable(False)
        self.addCleanup(quick.enable, True)


class OperatorsThroughPython(ThroughPython, test_torch.Operators):
    pass


class DispatchThroughPython(ThroughPython, test_torch.Dispatch):
    pass


if __name__ == "__main__":
    unittest.main()
