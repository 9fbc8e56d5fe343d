"""moescope.torch on a GPU within PyTorch: compile, graphs, autocast, state dicts, errors. Skips as test_cuda does.

Runs without pytest: python3 -m unittest -v test_cuda_framework
"""
import copy
import tempfile
import unittest

try:
    import torch
except ModuleNotFoundError:
    raise unittest.SkipTest("PyTorch is not installed") from None
import torch.nn.functional as F

import moescope
import moescope.torch as mt
from moescope import _library as lib
from test_cuda import MANY, Near, case, draw, exact, layer, needs_cuda, output
from test_torch import OPCHECKS, PublishedTwin

ops = torch.ops.moescope


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

    def test_systems_beside_it(self):
        torch.manual_seed(9)
        modules = (mt.PEER(64, 256, 16, heads=2, key_size=16), mt.PKM(64, 256, 16, heads=2, key_size=16), mt.GShard(64, 32, 8, 2),
                   mt.DeepSeekMoE(64, 32, 24, 8, 2))
        for twin in modules:
            module = copy.deepcopy(twin).cuda()
            twin.double()
            x = torch.randn(20, 64)
            for one, tokens in ((module, x.cuda()), (twin, x.double())):
                one(tokens).square().sum().backward()
            self.near(module(x.cuda()), twin(x.double()), 1e-5, type(twin).__name__)
            for (name, one), other in zip(module.named_parameters(), twin.parameters()):
                self.near(one.grad, other.grad, 1e-4, (type(twin).__name__, name))

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
        self.assertEqual(lib.workspace_bytes("experts_forward", shape, where), 0)  # one launch that needs nothing
        x, w, y = draw(4, 64), draw(16, 64), torch.empty(4, 64, device="cuda")
        ids, gates = torch.zeros(4, 3, dtype=torch.int32, device="cuda"), torch.rand(4, 3, device="cuda")
        tensors = [one.data_ptr() for one in (x, w, w, ids, gates, y)]
        lib.call("experts_forward", shape, where, *tensors)
        with self.assertRaisesRegex(ValueError, "x: .* must be aligned to 16 bytes on CUDA"):
            lib.call("experts_forward", shape, where, tensors[0] + 4, *tensors[1:])
        with self.assertRaisesRegex(ValueError, "w_in: null"):
            lib.call("experts_forward", shape, where, tensors[0], None, *tensors[2:])
        size = lib.workspace_bytes("select_forward", shape, where)
        workspace, sides = torch.empty(size + 63, dtype=torch.uint8, device="cuda"), draw(4, 4)
        tensors = [one.data_ptr() for one in (sides, sides, ids, gates, gates)]
        lib.give_workspace(where, workspace.data_ptr(), size)
        lib.call("select_forward", shape, where, *tensors)
        lib.give_workspace(where, workspace.data_ptr(), size - 1)
        with self.assertRaisesRegex(ValueError, f"workspace_bytes: {size - 1} must be at least {size}"):
            lib.call("select_forward", shape, where, *tensors)


if __name__ == "__main__":
    unittest.main()
