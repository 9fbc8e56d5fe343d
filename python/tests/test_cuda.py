"""moescope.torch on a GPU, against float64 on the CPU. Skips where there is no GPU or the library has no kernels.

Runs without pytest: python3 -m unittest -v test_cuda
"""
import itertools
import os
import tempfile
import unittest

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # PyTorch wants it for deterministic products

try:
    import torch
except ModuleNotFoundError:
    raise unittest.SkipTest("PyTorch is not installed") from None
import torch.nn.functional as F

import moescope
import moescope.torch as mt
from moescope import _library as lib
from test_torch import OPCHECKS, PublishedTwin

ops = torch.ops.moescope
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

    def compare(self, call, tensors, dtype, what, least=1e-30):
        made = self.gradients(call, tensors)
        direction = draw(*call(*tensors).shape, seed=20).to(dtype)
        twin = exact(tensors)
        twin = [one.requires_grad_() if other.is_floating_point() else other.cpu() for one, other in zip(twin, tensors)]
        call(*twin).backward(direction.cpu().double())
        for at, (one, other) in enumerate(zip(made, twin)):
            if one is not None:
                self.near(one, other.grad, BACKWARD[dtype], (what, at), least)

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
        for tokens, rows, cols, top_k in ((40, 6, 8, 9), (3, 1, 40, 7), (5, 7000, 9000, 33), (2, 128, 128, 10000), (300, 320, 320, 64)):
            a, b = draw(tokens, rows, seed=2), draw(tokens, cols, seed=3)
            for mode, marginals in itertools.product(("softmax", "probability", "relu", "score"), ("log_softmax", "as_given")):
                self.compare(lambda a, b: mt.select(a, b, top_k, gates=mode, marginals=marginals).gates, (a, b), torch.float32,
                             ("select", tokens, mode, marginals), 0.1)

    def test_of_many_tokens_without_pairs(self):
        for shared, mode in ((0, "softmax"), (96, "probability")):
            inputs = case(MANY[0], MANY[1], MANY[2], MANY[2], shared, torch.bfloat16, True)
            self.assertIn("strips_dgrad", kernels_of(lambda: output(inputs, MANY[3], mode).sum().backward()))
            self.compare(lambda *t: output(t, MANY[3], mode), inputs, torch.bfloat16, ("strips", shared, mode))

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


@needs_cuda
class Framework(Near):
    def test_opcheck(self):
        for dtype, id_dtype in ((torch.float32, torch.int32), (torch.bfloat16, torch.int64)):
            inputs = case(7, 64, 3, 4, 16, dtype, True)
            turned = [one.detach().t().contiguous().t().requires_grad_() for one in inputs]
            gates = torch.rand(7, 5, device="cuda", requires_grad=True)
            ids = torch.randint(0, 12, (7, 5), dtype=id_dtype, device="cuda")
            for t in (inputs, turned):
                for op, arguments in ((ops.layer_output, (*t, None, 5, "softmax", "silu")), (ops.experts, (t[0], t[3], t[4], ids, gates, "silu")), (ops.select, (t[1], t[2], 5, "softmax", "log_softmax")),
                                      (ops.mlp, (t[0], *t[5:], "gelu")), (ops.layer, (*t, 5, "probability", "silu")),
                                      (ops.layer, (*t[:5], None, None, None, 5, "softmax", "silu"))):
                    limit = 1e-4 if dtype == torch.float32 else 2e-2
                    torch.library.opcheck(op.default, arguments, test_utils=OPCHECKS, rtol=limit, atol=limit)

    def test_compile(self):
        for mode in ("default", "reduce-overhead"):
            torch._dynamo.reset()
            inputs = case(64, 64, 8, 8, 16, torch.bfloat16, True)
            call = lambda *t: torch.tanh(layer(t, 8).y) * 2  # noqa: E731
            compiled = torch.compile(call, fullgraph=True, mode=mode)
            expected = call(*inputs)
            expected.float().square().sum().backward()
            wanted = [one.grad.clone() for one in inputs]
            for _ in range(3):  # a graph is captured in the second run
                for one in inputs:
                    one.grad = None
                torch.compiler.cudagraph_mark_step_begin()
                made = compiled(*inputs)
                torch.testing.assert_close(made, expected)
                made.float().square().sum().backward()
            for one, other in zip(inputs, wanted):
                self.near(one.grad, other, 2e-2, mode)

    def test_any_number_of_tokens_is_one_graph(self):
        torch._dynamo.reset()
        module = mt.OmniMoE(64, 32, 64, 8, device="cuda").eval()
        compiled = torch.compile(module, fullgraph=True, dynamic=True)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for tokens in (5, 9, 33, 700):
                x = torch.randn(tokens, 64, device="cuda", requires_grad=True)
                compiled(x).square().sum().backward()
                gradient, x.grad = x.grad, None
                module(x).square().sum().backward()
                self.near(gradient, x.grad, 1e-4)

    def test_graph_of_forward_and_backward(self):
        for tokens, hidden, side, top_k in ((64, 64, 8, 8), MANY):
            inputs = case(tokens, hidden, side, side, 16, torch.bfloat16, True)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())

            def step():
                y = output(inputs, top_k)
                return (y, *torch.autograd.grad(y.float().square().sum(), inputs))

            with torch.cuda.stream(stream):
                for _ in range(2):
                    step()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                made = step()
            for seed in (30, 31):
                with torch.no_grad():
                    for at, one in enumerate(inputs):
                        one.copy_(draw(*one.shape, dtype=one.dtype, seed=seed + at, scale=1.0 if at < 3 else 0.1))
                graph.replay()
                replayed = [one.clone() for one in made]
                for at, (one, other) in enumerate(zip(replayed, step())):
                    self.near(one, other, 1e-2 if tokens > 1000 or at else 1e-6, (tokens, at))

    def test_nothing_waits_for_the_device(self):
        inputs = case(256, 64, 32, 32, 16, torch.bfloat16, True)
        ids, gates = torch.randint(0, 1024, (256, 8)).cuda(), draw(256, 8).requires_grad_()

        def step():
            y = layer(inputs, 16).y + mt.experts(inputs[0], inputs[3], inputs[4], ids, gates)
            y.float().square().sum().backward()

        step()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_autocast(self):
        torch.manual_seed(5)
        module = mt.OmniMoE(64, 32, 64, 8, device="cuda")
        x = torch.randn(64, 64, device="cuda")
        expected = module(x)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            y, ids, gates = module(x, return_routing=True)
            self.assertEqual((y.dtype, gates.dtype), (torch.bfloat16, torch.float32))
            y.float().square().sum().backward()
        self.assertTrue(torch.equal(ids, module(x, return_routing=True).ids))  # the router is exact
        self.near(y, expected, 1e-2)
        self.assertTrue(all(one.grad.dtype == torch.float32 and torch.isfinite(one.grad).all() for one in module.parameters()))
        with torch.autocast("cuda", dtype=torch.float16), self.assertRaisesRegex(ValueError, "autocast"):
            module(x)

    def test_state_dict_of_the_published_module(self):
        torch.manual_seed(6)
        twin, module = PublishedTwin(64, 32, 256, 8).cuda(), mt.OmniMoE(64, 32, 256, 8, device="cuda")
        module.load_state_dict(twin.state_dict(), strict=True)
        x = torch.randn(3, 50, 64, device="cuda")
        for training in (True, False):  # batch statistics, then running ones
            self.near(module.train(training)(x), twin.train(training)(x), 1e-5)
        twin.load_state_dict(module.state_dict(), strict=True)
        for (name, one), other in zip(module.state_dict().items(), twin.state_dict().values()):
            torch.testing.assert_close(one, other, msg=name)

    def test_fully_sharded(self):
        """FSDP2 over a mesh of one: parameters that are gathered are plain again, and their gradients the same."""
        if not torch.distributed.is_available():
            self.skipTest("PyTorch without torch.distributed")
        from torch.distributed.fsdp import fully_shard

        torch.manual_seed(7)
        module, twin = (mt.OmniMoE(64, 32, 64, 8, device="cuda") for _ in range(2))
        twin.load_state_dict(module.state_dict())
        with tempfile.TemporaryDirectory() as folder:
            torch.distributed.init_process_group("nccl", init_method=f"file://{folder}/store", rank=0, world_size=1,
                                                 device_id=torch.device("cuda", torch.cuda.current_device()))
            try:
                fully_shard(module)
                x = torch.randn(40, 64, device="cuda")
                for _ in range(2):
                    for one in (module, twin):
                        one.zero_grad()
                        one(x).square().sum().backward()
                for (name, one), other in zip(module.named_parameters(), twin.parameters()):
                    self.near(one.grad.full_tensor(), other.grad, 1e-5, name)
            finally:
                torch.distributed.destroy_process_group()

    def test_deterministic(self):
        for tokens, hidden, side, top_k in ((128, 64, 16, 8), MANY):
            inputs = case(tokens, hidden, side, side, 16, torch.bfloat16, True)
            ids = torch.randint(0, side * side, (tokens, 6)).cuda()
            ids[:, 3] = ids[:, 1]
            gates = draw(tokens, 6).requires_grad_()
            runs = []
            torch.use_deterministic_algorithms(True)
            try:
                for _ in range(3):
                    y = layer(inputs, top_k).y + output(inputs, top_k) + mt.experts(inputs[0], inputs[3], inputs[4], ids, gates)
                    runs.append([y, *torch.autograd.grad(y.float().square().sum(), [*inputs, gates])])
            finally:
                torch.use_deterministic_algorithms(False)
            for other in runs[1:]:
                for at, (one, two) in enumerate(zip(runs[0], other)):
                    self.assertTrue(torch.equal(one, two), (tokens, at))

    def test_training_follows_the_dense_layer(self):
        torch.manual_seed(4)
        module = mt.OmniMoE(64, 32, 64, 8, device="cuda")
        twin = mt.OmniMoE(64, 32, 64, 8, device="cuda")
        twin.load_state_dict(module.state_dict())

        def dense(t):
            rows, cols = twin.router_logits(t)
            weights = [one.weight for one in (twin.gate_proj, twin.up_proj, twin.down_proj)]
            scores = (rows.log_softmax(-1)[:, :, None] + cols.log_softmax(-1)[:, None]).flatten(1)
            chosen, ids = scores.topk(8, dim=-1)
            mask = torch.zeros_like(scores).scatter(1, ids, chosen.exp())
            return ((mask * F.silu(t @ twin.up_embed.weight.T)) @ twin.down_embed.weight
                    + F.linear(F.silu(t @ weights[0].T) * (t @ weights[1].T), weights[2]))

        x, target = torch.randn(128, 64, device="cuda"), torch.randn(128, 64, device="cuda")
        losses = []
        for call, one in ((module, module), (dense, twin)):
            optimizer = torch.optim.Adam(one.parameters(), lr=1e-2)
            history = []
            for _ in range(20):
                optimizer.zero_grad()
                loss = (call(x) - target).square().mean()
                loss.backward()
                optimizer.step()
                history.append(loss.item())
            losses.append(torch.tensor(history))
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
        self.assertLess(losses[0][-1].item(), 0.8 * losses[0][0].item())


@needs_cuda
class Errors(unittest.TestCase):
    def test_of_operators(self):
        x, rows, cols, w_in, w_out, *shared = case(7, 64, 3, 4, 16)
        ids, gates = torch.zeros(7, 2, dtype=torch.int64, device="cuda"), torch.rand(7, 2, device="cuda")
        cases = (
            ("top_k: 13", ValueError, lambda: mt.layer(x, rows, cols, w_in, w_out, 13)),
            ("dtype: float64 has no kernel", NotImplementedError, lambda: mt.select(rows.double(), cols.double(), 2)),
            ("hidden_size: 60 must be a multiple of 8", NotImplementedError,
             lambda: mt.experts(x[:, :60], w_in[:, :60], w_out[:, :60], ids, gates)),
            ("hidden_size: 8192 must be at most 4096", NotImplementedError,
             lambda: mt.experts(*(draw(7, 8192) for _ in range(3)), ids, gates)),
            ("w_in: device cpu must be cuda", ValueError, lambda: mt.experts(x, w_in.cpu(), w_out, ids, gates)),
        )
        for words, kind, call in cases:
            with self.assertRaises(kind) as caught:
                call()
            self.assertIsInstance(caught.exception, moescope.MoescopeError)
            self.assertIn(words, str(caught.exception))
        mt.experts(x, w_in, w_out, ids, gates)  # and then goes on

    def test_of_the_c_interface(self):
        shape = lib.shape(num_tokens=4, dtype="float32", hidden_size=64, grid_rows=4, grid_cols=4, top_k=3)
        where = lib.execution(device=lib.CUDA)
        self.assertGreater(lib.workspace_bytes("layer_backward", shape, where), 0)
        with self.assertRaisesRegex(ValueError, r"device_index: 99 must be in \[0, "):
            lib.workspace_bytes("layer_forward", shape, lib.execution(device=lib.CUDA, device_index=99))
        size = lib.workspace_bytes("experts_forward", shape, where)
        x, w, y = draw(4, 64), draw(16, 64), torch.empty(4, 64, device="cuda")
        ids, gates = torch.zeros(4, 3, dtype=torch.int32, device="cuda"), torch.rand(4, 3, device="cuda")
        workspace = torch.empty(size + 63, dtype=torch.uint8, device="cuda")
        tensors = [one.data_ptr() for one in (x, w, w, ids, gates, y)]
        lib.give_workspace(where, workspace.data_ptr(), size)
        lib.call("experts_forward", shape, where, *tensors)
        with self.assertRaisesRegex(ValueError, "x: .* must be aligned to 16 bytes on CUDA"):
            lib.call("experts_forward", shape, where, tensors[0] + 4, *tensors[1:])
        with self.assertRaisesRegex(ValueError, "w_in: null"):
            lib.call("experts_forward", shape, where, tensors[0], None, *tensors[2:])
        lib.give_workspace(where, workspace.data_ptr(), size - 1)
        with self.assertRaisesRegex(ValueError, f"workspace_bytes: {size - 1} must be at least {size}"):
            lib.call("experts_forward", shape, where, *tensors)


if __name__ == "__main__":
    unittest.main()
