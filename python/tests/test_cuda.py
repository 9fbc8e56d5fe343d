"""moescope.torch on a GPU, against float64 on the CPU. Skips where there is no GPU or the library has no kernels.

Runs without pytest: python3 -m unittest -v test_cuda
"""
import itertools
import os
import unittest

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # PyTorch wants it for deterministic products

try:
    import torch
except ModuleNotFoundError:
    raise unittest.SkipTest("PyTorch is not installed") from None

import moescope
import moescope.torch as mt

REASON = "no CUDA device" if not torch.cuda.is_available() else "the library has no kernels for CUDA"
needs_cuda = unittest.skipUnless(torch.cuda.is_available() and moescope.supports_cuda(), REASON)
# Relative error (2-norm) against float64 on the same stored values: bfloat16 rounds products' operands and the output.
FORWARD = {torch.float32: 2e-6, torch.bfloat16: 4e-3}
BACKWARD = {torch.float32: 5e-6, torch.bfloat16: 8e-3}


def draw(*shape, dtype=torch.float32, seed=0, scale=1.0):
    made = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=made) * scale).to(dtype).cuda()


def case(tokens, hidden, rows, cols, shared=0, dtype=torch.float32, requires_grad=False):
    """x, logits, W, V and the shared MLP's matrices, as a model has them at its start."""
    small = hidden**-0.5
    made = [draw(tokens, hidden, dtype=dtype, seed=1), draw(tokens, rows, seed=2), draw(tokens, cols, seed=3),
            draw(rows * cols, hidden, dtype=dtype, seed=4, scale=small), draw(rows * cols, hidden, dtype=dtype, seed=5, scale=small)]
    if shared:
        made += [draw(shared, hidden, dtype=dtype, seed=6, scale=small), draw(shared, hidden, dtype=dtype, seed=7, scale=small),
                 draw(hidden, shared, dtype=dtype, seed=8, scale=shared**-0.5)]
    return [one.requires_grad_(requires_grad) for one in made]


def exact(tensors):
    return [one.detach().cpu().double().requires_grad_(one.requires_grad) for one in tensors]


def layer(inputs, top_k, gates="softmax", activation="silu"):
    return mt.layer(*inputs[:5], top_k, shared=tuple(inputs[5:]) or None, gates=gates, activation=activation)


def output(inputs, top_k, gates="softmax", activation="silu"):
    return mt.layer_output(*inputs[:5], top_k, shared=tuple(inputs[5:]) or None, gates=gates, activation=activation)


def exact_y(inputs, found, activation="silu"):
    """y in float64 of the pairs that were found: which of two nearly equal scores is larger is another test's matter."""
    x, _, _, w_in, w_out, *shared = exact(inputs)
    y = mt.experts(x, w_in, w_out, found.ids.cpu(), found.gates.detach().cpu().double(), activation=activation)
    return y + mt.mlp(x, *shared, activation=activation) if shared else y


def kernels_of(call):
    """Names of the kernels that a call runs."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    return " ".join(one.key for one in seen.key_averages())


# Of a layer that runs on strips: tokens, hidden size, side of the grid, K.
MANY = (4096, 512, 320, 512)


class Near(unittest.TestCase):
    def near(self, made, expected, limit, what="", least=1e-30):
        """Relative to the expected value's norm, or to `least` where that is more: rounding of what is 0 has no size of its own."""
        made, expected = made.detach().cpu().double(), expected.detach().cpu().double()
        self.assertEqual(made.shape, expected.shape)
        self.assertTrue(torch.isfinite(made).all(), f"{what}: not finite")
        error = (made - expected).norm() / expected.norm().clamp(min=least)
        self.assertLess(error.item(), limit, what)


@needs_cuda
class Select(Near):
    def test_equals_float64(self):
        grids = ((7, 3, 4, 5), (5, 16, 16, 200), (300, 16, 16, 8), (3, 1, 40, 7), (3, 40, 1, 40), (9, 8, 8, 64), (600, 320, 320, 512),
                 (2, 128, 128, 10000), (1, 320, 320, 512), (4, 700, 20, 33))
        for (tokens, rows, cols, top_k), mode in itertools.product(grids, ("softmax", "probability", "relu", "score")):
            for marginals in ("log_softmax", "as_given"):
                a, b = draw(tokens, rows, seed=1), draw(tokens, cols, seed=2)
                made = mt.select(a, b, top_k, gates=mode, marginals=marginals)
                with self.subTest(grid=(tokens, rows, cols, top_k), mode=mode, marginals=marginals):
                    r, c = a.cpu().double(), b.cpu().double()
                    if marginals == "log_softmax":
                        r, c = r.log_softmax(1), c.log_softmax(1)
                    all_scores = (r[:, :, None] + c[:, None]).flatten(1)
                    ids = made.ids.cpu().long()
                    self.assertEqual(ids.sort(1)[0].diff(dim=1).eq(0).sum().item(), 0)  # distinct
                    scores = all_scores.gather(1, ids)
                    self.assertLess((scores - made.scores.cpu()).abs().max().item(), 5e-6)
                    self.assertLess((scores.sort(1, descending=True)[0] - all_scores.topk(top_k, 1)[0]).abs().max().item(), 5e-6)
                    self.assertTrue((made.scores.diff(dim=1) <= 0).all())
                    gates = {"softmax": scores.softmax(1), "probability": scores.exp(), "relu": scores.clamp(min=0), "score": scores}[mode]
                    self.assertLess(((gates - made.gates.cpu()).abs() / (1 + gates.abs())).max().item(), 5e-6)

    def test_ties_go_to_the_lowest_ids(self):
        for seed in range(10):
            made = torch.Generator().manual_seed(seed)
            a, b = torch.randint(0, 3, (8, 6), generator=made).float(), torch.randint(0, 3, (8, 7), generator=made).float()
            on_cpu, on_gpu = (mt.select(*pair, 11, gates="score", marginals="as_given") for pair in ((a, b), (a.cuda(), b.cuda())))
            self.assertTrue(torch.equal(on_cpu.ids, on_gpu.ids.cpu()))
            self.assertTrue(torch.equal(on_cpu.gates, on_gpu.gates.cpu()))

    def test_a_bad_logit_shows(self):
        a, b = draw(5, 8), draw(5, 8, seed=1)
        a[2, 3], b[4, 0] = float("nan"), float("inf")
        made = mt.select(a, b, 6)
        self.assertEqual(torch.isnan(made.gates).any(1).tolist(), [False, False, True, False, True])
        self.assertTrue(((made.ids >= 0) & (made.ids < 64)).all())


@needs_cuda
class Forward(Near):
    def test_experts(self):
        sizes = ((7, 8, 12, 5), (1, 1024, 500, 64), (64, 64, 4096, 16), (33, 128, 9, 20), (300, 2048, 300, 3), (2, 4096, 40, 512))
        for (tokens, hidden, experts, top_k), dtype in itertools.product(sizes, FORWARD):
            for activation, id_dtype in zip(("silu", "gelu", "relu"), (torch.int32, torch.int64, torch.int64)):
                x, _, _, w_in, w_out = case(tokens, hidden, 1, experts, dtype=dtype)
                ids = torch.randint(0, experts, (tokens, top_k), dtype=id_dtype, generator=torch.Generator().manual_seed(9)).cuda()
                ids[:, -1] = ids[:, 0]  # twice, and in no order
                gates = draw(tokens, top_k, seed=10)
                with self.subTest(size=(tokens, hidden, experts, top_k), dtype=dtype, activation=activation):
                    y = mt.experts(x, w_in, w_out, ids, gates, activation=activation)
                    self.assertEqual(y.dtype, dtype)
                    expected = mt.experts(*exact((x, w_in, w_out)), ids.cpu(), gates.cpu().double(), activation=activation)
                    self.near(y, expected, FORWARD[dtype])

    def test_mlp(self):
        for (tokens, hidden, width), dtype, activation in itertools.product(((1, 8, 8), (7, 64, 24), (700, 256, 1024), (5, 512, 3)), FORWARD,
                                                                            ("silu", "gelu", "relu")):
            x, *_, gate, up, down = case(tokens, hidden, 1, 1, width, dtype)
            with self.subTest(size=(tokens, hidden, width), dtype=dtype, activation=activation):
                expected = mt.mlp(*exact((x, gate, up, down)), activation=activation)
                self.near(mt.mlp(x, gate, up, down, activation=activation), expected, 2 * FORWARD[dtype])

    def test_layer(self):
        sizes = ((1, 64, 8, 8, 8, 0), (7, 64, 16, 12, 20, 40), (300, 256, 32, 32, 64, 128), (1500, 128, 320, 320, 512, 64),
                 (2048, 64, 320, 320, 512, 0), (5, 64, 8, 8, 64, 0), (700, 256, 200, 150, 300, 0))
        for (tokens, hidden, rows, cols, top_k, shared), dtype, mode in itertools.product(sizes, FORWARD, ("softmax", "probability")):
            inputs = case(tokens, hidden, rows, cols, shared, dtype)
            with self.subTest(size=(tokens, hidden, rows, cols, top_k), dtype=dtype, mode=mode):
                made = layer(inputs, top_k, mode)
                chosen = mt.select(inputs[1], inputs[2], top_k, gates=mode)
                self.assertTrue(torch.equal(made.ids, chosen.ids))
                self.assertTrue(torch.equal(made.gates, chosen.gates))
                self.near(made.y, exact_y(inputs, made), 1.5 * FORWARD[dtype])

    def test_layer_without_pairs(self):
        """Strips where there are many tokens."""
        for tokens, mode in itertools.product((3, 1000, MANY[0]), ("softmax", "probability")):
            inputs = case(tokens, MANY[1], 320, 320, 64, torch.bfloat16)
            self.assertEqual("staircase" in kernels_of(lambda: output(inputs, 512, mode)), tokens == MANY[0])
            y = mt.layer_output(*inputs[:5], 512, shared=tuple(inputs[5:]), gates=mode)
            self.near(y, exact_y(inputs, layer(inputs, 512, mode)), 1.5 * FORWARD[torch.bfloat16], (tokens, mode))
            bound = mt.expert_bound(*inputs[3:5])
            torch.use_deterministic_algorithms(True)  # the same scale gives the same bits
            try:
                with_bound, without = (mt.layer_output(*inputs[:5], 512, shared=tuple(inputs[5:]), gates=mode, expert_bound=one)
                                       for one in (bound, None))
            finally:
                torch.use_deterministic_algorithms(False)
            self.near(with_bound, without, 1e-4)

    def test_edges(self):
        for tokens in (0, 1):
            inputs = case(tokens, 64, 8, 8, 16, torch.bfloat16, True)
            made = layer(inputs, 64)  # K = N
            self.assertEqual((made.y.shape, made.ids.shape), ((tokens, 64), (tokens, 64)))
            made.y.sum().backward()
            self.assertTrue(all(one.grad.shape == one.shape for one in inputs))
        self.assertEqual(inputs[3].grad.abs().sum().item() > 0, True)

    def test_layouts(self):
        inputs = case(12, 64, 8, 8, 16)
        expected = layer(inputs, 9)
        folded = [one.unflatten(0, (3, 4)) if at < 3 else one for at, one in enumerate(inputs)]
        strided = [torch.stack([one, one], -1)[..., 0] for one in inputs]
        turned = [one.t().contiguous().t() for one in inputs]
        shifted = [torch.cat([one.new_zeros(1), one.flatten()])[1:].view(one.shape) for one in inputs]  # not aligned
        for other in (folded, strided, turned, shifted):
            made = layer(other, 9)
            self.assertTrue(torch.equal(made.y.view_as(expected.y), expected.y))
            self.assertTrue(torch.equal(made.ids.view_as(expected.ids), expected.ids))

    def test_ids_outside_show(self):
        x, _, _, w_in, w_out = case(6, 64, 1, 10)
        ids, gates = torch.randint(0, 10, (6, 4)).cuda(), draw(6, 4)
        ids[1, 2], ids[3, 0] = 10, -1
        y = mt.experts(x, w_in, w_out, ids, gates)
        self.assertEqual(torch.isnan(y).any(1).tolist(), [False, True, False, True, False, False])

    def test_another_stream(self):
        inputs = case(300, 64, 32, 32, 16, torch.bfloat16)
        expected = layer(inputs, 16).y
        other = torch.cuda.Stream()
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            x = inputs[0] * 2  # on that stream
            made = layer([x / 2, *inputs[1:]], 16).y
        other.synchronize()
        self.assertTrue(torch.equal(made, expected))


@needs_cuda
class Backward(Near):
    def gradients(self, call, tensors, wanted=None):
        tensors = [one.detach().clone().requires_grad_(one.is_floating_point() and (wanted is None or at in wanted))
                   for at, one in enumerate(tensors)]
        y = call(*tensors)
        direction = draw(*y.shape, seed=20).to(y.device, y.dtype)
        y.backward(direction)
        return [one.grad for one in tensors]

    def compare(self, call, tensors, dtype, what):
        made = self.gradients(call, tensors)
        direction = draw(*call(*tensors).shape, seed=20).to(dtype)
        twin = exact(tensors)
        twin = [one.requires_grad_() if other.is_floating_point() else other.cpu() for one, other in zip(twin, tensors)]
        call(*twin).backward(direction.cpu().double())
        for at, (one, other) in enumerate(zip(made, twin)):
            if one is not None:
                self.near(one, other.grad, BACKWARD[dtype], (what, at))

    def test_equals_float64(self):
        for dtype, activation in itertools.product(FORWARD, ("silu", "gelu", "relu")):
            x, rows, cols, w_in, w_out, *shared = case(40, 64, 6, 8, 24, dtype)
            ids = torch.randint(0, 48, (40, 7), generator=torch.Generator().manual_seed(3)).cuda()
            gates = draw(40, 7, seed=11)
            self.compare(lambda *t: mt.experts(*t, activation=activation), (x, w_in, w_out, ids, gates), dtype, "experts")
            self.compare(lambda *t: mt.mlp(*t, activation=activation), (x, *shared), dtype, "mlp")
            narrow = (x, shared[0][:3], shared[1][:3], shared[2][:, :3])  # rows of six and twelve bytes, one behind the other or not
            self.compare(lambda *t: mt.mlp(*t, activation=activation), narrow, dtype, "narrow mlp")
            both = torch.cat(shared[:2])  # matrices of one tensor lie one behind the other
            self.compare(lambda a, b, c: mt.mlp(a, b[:24], b[24:], c, activation=activation), (x, both, shared[2]), dtype, "mlp in one")
            for mode in ("softmax", "probability"):
                inputs = (x, rows, cols, w_in, w_out, *shared)
                self.compare(lambda *t: layer(t, 9, mode, activation).y, inputs, dtype, ("layer", mode))
                self.compare(lambda *t: output(t, 9, mode, activation), inputs, dtype, ("layer_output", mode))

    def test_of_selection(self):
        """Against formulas in float64 over the pairs that were selected: which of two nearly equal scores comes first is no error."""
        for tokens, rows, cols, top_k in ((40, 6, 8, 9), (3, 1, 40, 7), (5, 7000, 9000, 33), (2, 128, 128, 10000), (300, 320, 320, 64)):
            sides = [draw(tokens, rows, seed=2), draw(tokens, cols, seed=3)]
            direction = draw(tokens, top_k, seed=20)
            for mode, marginals in itertools.product(("softmax", "probability", "relu", "score"), ("log_softmax", "as_given")):
                ours = [one.clone().requires_grad_() for one in sides]
                made = mt.select(*ours, top_k, gates=mode, marginals=marginals)
                made.gates.backward(direction)
                twin = [one.detach().cpu().double().requires_grad_() for one in ours]
                r, c = [one.log_softmax(1) for one in twin] if marginals == "log_softmax" else twin
                ids = made.ids.cpu().long()
                scores = r.gather(1, ids // cols) + c.gather(1, ids % cols)
                gates = {"softmax": scores.softmax(1), "probability": scores.exp(), "relu": scores.clamp(min=0), "score": scores}[mode]
                gates.backward(direction.cpu().double())
                for one, other in zip(ours, twin):
                    self.near(one.grad, other.grad, 1e-5, (tokens, mode, marginals), 0.1)

    def test_of_many_tokens_without_pairs(self):
        for shared, mode in ((0, "softmax"), (96, "probability")):
            inputs = case(MANY[0], MANY[1], MANY[2], MANY[2], shared, torch.bfloat16, True)
            self.assertIn("strips_dgrad", kernels_of(lambda: output(inputs, MANY[3], mode).sum().backward()))
            self.compare(lambda *t: output(t, MANY[3], mode), inputs, torch.bfloat16, ("strips", shared, mode))

    def test_memory_of_what_was_selected(self):
        """The same bits from a workspace of half the size; what was said to be too little shows, and writes nowhere else."""
        inputs = case(MANY[0], MANY[1], MANY[2], MANY[2], 0, torch.bfloat16, True)
        direction = torch.ones_like(inputs[0])
        made, most = [], []
        torch.use_deterministic_algorithms(True)
        try:
            for exact_memory in (False, True, True):
                y = mt.layer_output(*inputs, MANY[3], exact_memory=exact_memory)
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                made.append(torch.autograd.grad(y, inputs, direction))
                most.append(torch.cuda.max_memory_allocated() - before - sum(one.numel() * one.element_size() for one in made[-1]))
        finally:
            torch.use_deterministic_algorithms(False)
        for others in made[1:]:
            for one, other in zip(made[0], others):
                self.assertTrue(torch.equal(one, other))
        self.assertLess(most[2], 0.7 * most[0])
        want, options = [True] * 5, ("softmax", "silu")
        kernel = lambda counts: mt._ops._layer_backward(*inputs, None, None, None, None, None, direction, *options, want, MANY[3], counts)  # noqa: E731
        with torch.no_grad():
            few = kernel((64, 64))
            self.assertTrue(few[0].isnan().all() and few[1].isnan().all() and few[2].isnan().all())
            enough = kernel((1 << 30, 1 << 30))
        for one, other in zip(enough, made[0]):
            self.near(one, other, BACKWARD[torch.bfloat16])
        small = case(9, 64, 6, 8, requires_grad=True)  # token by token: there are no strips
        for one, other in zip(torch.autograd.grad(mt.layer_output(*small, 5, exact_memory=True).sum(), small),
                              torch.autograd.grad(mt.layer_output(*small, 5).sum(), small)):
            self.near(one, other, 1e-6)

    def test_again_with_the_same_shapes(self):
        """Nothing of a call is left for the next, and a gradient that is one number for all elements has no layout of its own."""
        for seed in range(3):
            inputs = [draw(*one.shape, seed=50 + 10 * seed + at, scale=0.3) for at, one in enumerate(case(30, 64, 6, 8, 24))]
            ids, gates = torch.randint(0, 48, (30, 7), generator=torch.Generator().manual_seed(seed)).cuda(), draw(30, 7, seed=seed)
            for what, call, tensors in (("layer", lambda *t: layer(t, 9).y, inputs), ("layer_output", lambda *t: output(t, 9), inputs),
                                        ("experts", mt.experts, (inputs[0], *inputs[3:5], ids, gates)),
                                        ("select", lambda a, b: mt.select(a, b, 9).gates * draw(9, seed=3).to(a), inputs[1:3])):
                ours = [one.detach().clone().requires_grad_(one.is_floating_point()) for one in tensors]
                twin = [one if other.is_floating_point() else other.cpu() for one, other in zip(exact(ours), ours)]
                call(*ours).sum().backward()
                call(*twin).sum().backward()
                for at, (one, other) in enumerate(zip(ours, twin)):
                    if one.is_floating_point():
                        self.near(one.grad, other.grad, BACKWARD[torch.float32], (what, seed, at))

    def test_without_tokens(self):
        inputs = case(0, 64, 4, 5, 16, requires_grad=True)
        for y in (layer(inputs, 3).y, output(inputs, 3)):
            for one in torch.autograd.grad(y.sum(), inputs):
                self.assertEqual(one.abs().sum().item(), 0)

    def test_any_subset(self):
        tensors = case(20, 64, 4, 4, 16)
        call = lambda *t: layer(t, 5).y  # noqa: E731
        everything = self.gradients(call, tensors)
        for wanted in itertools.combinations(range(8), 2):
            for at, one in enumerate(self.gradients(call, tensors, wanted)):
                if at in wanted:
                    self.near(one, everything[at], 1e-6)
                else:
                    self.assertIsNone(one)

    def test_double_backward_is_refused(self):
        inputs = case(5, 64, 4, 4, requires_grad=True)
        gradient, = torch.autograd.grad(layer(inputs, 3).y.sum(), inputs[0], create_graph=True)
        with self.assertRaisesRegex(NotImplementedError, "no double backward"):
            gradient.sum().backward()


if __name__ == "__main__":
    unittest.main()
