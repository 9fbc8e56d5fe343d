"""moescope.torch against dense layers in plain PyTorch and its own checks. Skips where PyTorch is not installed."""
import itertools
import unittest

try:
    import torch
except ModuleNotFoundError:
    raise unittest.SkipTest("PyTorch is not installed") from None
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import moescope
import moescope.torch as mt
from moescope.torch import published

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}
D, NR, NC, K, SHARED = 6, 3, 4, 5, 4
OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def dense_experts(x, w_in, w_out, ids, gates, activation="silu"):
    """Every expert for every token behind a mask of gates."""
    mask = torch.zeros(len(x), len(w_in), dtype=gates.dtype, device=x.device).scatter_add(1, ids.long(), gates)
    return (mask.to(x.dtype) * ACTIVATIONS[activation](x @ w_in.T)) @ w_out


def dense_layer(x, rows, cols, w_in, w_out, gate, up, down, top_k, mode="softmax", activation="silu"):
    scores = (rows.log_softmax(-1)[:, :, None] + cols.log_softmax(-1)[:, None]).flatten(1)
    chosen, ids = scores.topk(top_k, dim=-1)
    gates = chosen.softmax(-1) if mode == "softmax" else chosen.exp()
    act = ACTIVATIONS[activation]
    return dense_experts(x, w_in, w_out, ids, gates, activation) + F.linear(act(x @ gate.T) * (x @ up.T), down), ids


def tensors(tokens=7, dtype=torch.float64, seed=0, requires_grad=True):
    made = torch.Generator().manual_seed(seed)
    shapes = ((tokens, D), (tokens, NR), (tokens, NC), (NR * NC, D), (NR * NC, D), (SHARED, D), (SHARED, D), (D, SHARED))
    return [torch.randn(*shape, generator=made, dtype=torch.float64).to(dtype).requires_grad_(requires_grad) for shape in shapes]


def ours(inputs, top_k=K, mode="softmax", activation="silu"):
    return mt.layer(*inputs[:5], top_k, shared=tuple(inputs[5:]), gates=mode, activation=activation)


class PublishedTwin(torch.nn.Module):
    """The published module's parameters and formulas, in plain PyTorch."""

    def __init__(self, hidden, width, experts, top_k):
        super().__init__()
        side = int(experts**0.5)
        self.gate_proj, self.up_proj = (torch.nn.Linear(hidden, width, bias=False) for _ in range(2))
        self.down_proj = torch.nn.Linear(width, hidden, bias=False)
        self.router_gate_x, self.router_gate_y = (torch.nn.Linear(hidden, side, bias=False) for _ in range(2))
        self.router_norm_x, self.router_norm_y = (torch.nn.BatchNorm1d(side, affine=False) for _ in range(2))
        self.up_embed, self.down_embed = (torch.nn.Embedding(experts, hidden) for _ in range(2))
        self.top_k = top_k

    def forward(self, hidden_states):
        x = hidden_states.flatten(0, -2)
        y, _ = dense_layer(x, self.router_norm_x(self.router_gate_x(x)), self.router_norm_y(self.router_gate_y(x)), self.up_embed.weight,
                           self.down_embed.weight, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight, self.top_k,
                           "probability")
        return y.reshape(hidden_states.shape)


class Operators(unittest.TestCase):
    def test_layer_equals_dense_autograd(self):
        cases = itertools.product((torch.float64, torch.float32), ("softmax", "probability"), ("silu", "gelu", "relu"))
        for dtype, mode, activation in cases:
            one, two = tensors(dtype=dtype), tensors(dtype=dtype)
            y, ids, gates = ours(one, mode=mode, activation=activation)
            expected, dense_ids = dense_layer(*two, K, mode, activation)
            direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
            y.backward(direction)
            expected.backward(direction)
            with self.subTest(dtype=dtype, mode=mode, activation=activation):
                torch.testing.assert_close(y, expected)
                torch.testing.assert_close(ids.long().sort(-1)[0], dense_ids.sort(-1)[0])
                for left, right in zip(one, two):
                    torch.testing.assert_close(left.grad, right.grad)

    def test_gradcheck(self):
        inputs = tensors(tokens=3)
        ids = torch.randint(0, NR * NC, (3, K), generator=torch.Generator().manual_seed(2))
        gates = torch.rand(3, K, dtype=torch.float64, requires_grad=True)
        for activation in ("silu", "gelu"):
            self.assertTrue(torch.autograd.gradcheck(lambda x, w, v, g: mt.experts(x, w, v, ids, g, activation=activation),
                                                     (inputs[0], inputs[3], inputs[4], gates)))
            self.assertTrue(torch.autograd.gradcheck(lambda *t: mt.mlp(*t, activation=activation), (inputs[0], *inputs[5:])))
        for mode in ("softmax", "probability"):
            self.assertTrue(torch.autograd.gradcheck(lambda *t: ours(t, mode=mode).y, inputs))
            self.assertTrue(torch.autograd.gradcheck(lambda r, c: mt.select(r, c, K, gates=mode).gates, inputs[1:3]))

    def test_any_subset_of_gradients(self):
        reference = tensors()
        ours(reference).y.square().sum().backward()
        for wanted in itertools.product((False, True), repeat=8):
            if not any(wanted) or sum(wanted) > 2:
                continue
            inputs = [one.requires_grad_(want) for one, want in zip(tensors(requires_grad=False), wanted)]
            ours(inputs).y.square().sum().backward()
            for one, want, other in zip(inputs, wanted, reference):
                if want:
                    torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0)
                else:
                    self.assertIsNone(one.grad)

    def test_opcheck(self):
        ops = torch.ops.moescope
        for dtype in (torch.float64, torch.float32):
            inputs = tensors(dtype=dtype)
            permuted = [one.detach().t().contiguous().t().requires_grad_() for one in inputs]
            gates = torch.rand(7, K, dtype=dtype, requires_grad=True)
            for t in (inputs, permuted):
                for id_dtype in (torch.int32, torch.int64):
                    ids = torch.randint(0, NR * NC, (7, K), dtype=id_dtype)
                    torch.library.opcheck(ops.experts.default, (t[0], t[3], t[4], ids, gates, "silu"), test_utils=OPCHECKS)
                torch.library.opcheck(ops.select.default, (t[1], t[2], K, "softmax", "log_softmax"), test_utils=OPCHECKS)
                torch.library.opcheck(ops.mlp.default, (t[0], *t[5:], "gelu"), test_utils=OPCHECKS)
                torch.library.opcheck(ops.layer.default, (*t, K, "probability", "silu"), test_utils=OPCHECKS)
                torch.library.opcheck(ops.layer_output.default, (*t, None, K, "softmax", "silu"), test_utils=OPCHECKS)
                torch.library.opcheck(ops.layer.default, (*t[:5], None, None, None, K, "softmax", "silu"), test_utils=OPCHECKS)

    def test_double_backward_is_refused(self):
        inputs = tensors()
        gradient, = torch.autograd.grad(ours(inputs).y.sum(), inputs[0], create_graph=True)
        with self.assertRaisesRegex(NotImplementedError, "no double backward"):
            gradient.sum().backward()

    def test_edges(self):
        for tokens, top_k in ((0, K), (1, K), (1, NR * NC), (5, 1)):
            one, two = tensors(tokens), tensors(tokens)
            y = ours(one, top_k).y
            expected = dense_layer(*two, top_k)[0]
            torch.testing.assert_close(y, expected)
            y.sum().backward()
            expected.sum().backward()
            for left, right in zip(one, two):
                torch.testing.assert_close(left.grad, right.grad)

    def test_leading_extents_and_layouts(self):
        inputs = tensors(tokens=12, requires_grad=False)
        expected = ours(inputs)
        folded = [one.unflatten(0, (3, 4)) if at < 3 else one for at, one in enumerate(inputs)]
        made = ours(folded)
        self.assertEqual(made.ids.shape, (3, 4, K))
        torch.testing.assert_close(made.y.flatten(0, 1), expected.y, rtol=0, atol=0)
        strided = [torch.stack([one, one], -1)[..., 0] for one in inputs]
        torch.testing.assert_close(ours(strided).y, expected.y, rtol=0, atol=0)

    def test_bfloat16(self):
        exact = tensors(tokens=64, dtype=torch.bfloat16)
        logits = [exact[at].detach().float().requires_grad_() for at in (1, 2)]
        inputs = [exact[0], *logits, *exact[3:]]
        wide = [one.detach().double().requires_grad_() for one in inputs]
        y = ours(inputs).y
        expected = dense_layer(*wide, K)[0]
        self.assertEqual(y.dtype, torch.bfloat16)
        self.assertLess(((y.double() - expected).norm() / expected.norm()).item(), 4e-3)
        y.backward(torch.ones_like(y))
        expected.sum().backward()
        for one, other in zip(inputs, wide):
            self.assertEqual(one.grad.dtype, one.dtype)
            self.assertLess(((one.grad.double() - other.grad).norm() / other.grad.norm()).item(), 5e-3)

    def test_errors(self):
        x, rows, cols, w_in, w_out, *shared = tensors()
        cases = (
            ("top_k: 13", lambda: mt.layer(x, rows, cols, w_in, w_out, 13)),
            ("w_out: shape", lambda: mt.layer(x, rows, cols, w_in, w_out[:3], K)),
            ("w_in: dtype torch.float32", lambda: mt.layer(x, rows, cols, w_in.float(), w_out, K)),
            ("x: dtype torch.float16", lambda: mt.mlp(x.half(), *(one.half() for one in shared))),
            ("ids: dtype torch.float64", lambda: mt.experts(x, w_in, w_out, rows, rows)),
            ("must be finite", lambda: mt.select(rows * float("nan"), cols, K)),
            ("gates: 'top'", lambda: mt.select(rows, cols, K, gates="top")),
        )
        for words, call in cases:
            with self.assertRaises(moescope.MoescopeError) as caught:
                call()
            self.assertIn(words, str(caught.exception))


class Dispatch(unittest.TestCase):
    """Functions may leave the dispatcher out, and must not where someone listens there."""

    def test_what_a_call_left_is_for_the_same_alone(self):
        """Structs and sizes are kept from call to call: one that differs in anything is checked anew."""
        inputs = tensors(requires_grad=False)
        ids, gates = torch.randint(0, NR * NC, (7, 3)), torch.rand(7, 3, dtype=torch.float64)
        call = lambda x=inputs[0], w=inputs[3], v=inputs[4], i=ids, g=gates, **more: mt.experts(x, w, v, i, g, **more)  # noqa: E731
        for _ in range(2):
            expected = call()
            for kind, other in (("dtype", {"w": inputs[3].float()}), ("shape", {"v": inputs[4][:-1]}), ("dtype", {"x": inputs[0].float()}),
                                ("shape", {"g": gates[:-1]}), ("dtype", {"i": ids.short()}), ("activation", {"activation": "tanh"}),
                                ("ids", {"i": ids + NR * NC})):
                with self.assertRaisesRegex(ValueError, kind):
                    call(**other)
            torch.testing.assert_close(call(i=ids.int()), expected)
            torch.testing.assert_close(call(w=inputs[3].t().contiguous().t(), x=torch.stack([inputs[0]] * 2, -1)[..., 0]), expected)
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                self.assertTrue(torch.equal(call(), expected))
            finally:
                torch.set_num_threads(threads)

    def test_functions_have_the_operators_gradients(self):
        ops = torch.ops.moescope
        inputs, ids, gates = tensors(), torch.randint(0, NR * NC, (7, 3)), torch.rand(7, 3, dtype=torch.float64, requires_grad=True)
        x, rows, cols, w_in, w_out, *shared = inputs
        pairs = ((mt.layer(*inputs[:5], K, shared=tuple(shared)).y, ops.layer(*inputs, K, "softmax", "silu")[0], inputs),
                 (mt.layer(*inputs[:5], K).y, ops.layer(*inputs[:5], None, None, None, K, "softmax", "silu")[0], inputs[:5]),
                 (mt.layer_output(*inputs[:5], K, shared=tuple(shared)), ops.layer_output(*inputs, None, K, "softmax", "silu"), inputs),
                 (mt.experts(x, w_in, w_out, ids, gates), ops.experts(x, w_in, w_out, ids, gates, "silu"), [x, w_in, w_out, gates]),
                 (mt.mlp(x, *shared), ops.mlp(x, *shared, "silu"), [x, *shared]),
                 (mt.select(rows, cols, K).gates, ops.select(rows, cols, K, "softmax", "log_softmax")[0], [rows, cols]))
        for direct, operator, learnt in pairs:
            self.assertNotEqual(type(direct.grad_fn).__name__, type(operator.grad_fn).__name__)
            direction = torch.randn_like(direct)
            made = [torch.autograd.grad(one, learnt, direction, create_graph=True) for one in (direct, operator)]
            torch.testing.assert_close(*made, rtol=0, atol=0)
            for gradients in made:
                with self.assertRaisesRegex(NotImplementedError, "no double backward"):
                    gradients[0].sum().backward()

    def test_modes_and_other_tensors_see_the_operators(self):
        seen = []

        class Listening(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                seen.append(str(function))
                return function(*args, **(kwargs or {}))

        inputs = tensors(requires_grad=False)
        expected = ours(inputs)
        with Listening():
            made = ours(inputs)
        self.assertIn("moescope.layer.default", seen)
        self.assertTrue(torch.equal(made.y, expected.y))
        with FakeTensorMode() as mode:
            self.assertIsInstance(ours([mode.from_tensor(one) for one in inputs]).y, FakeTensor)
        self.assertEqual(ours([one.to("meta") for one in inputs]).y.device.type, "meta")
        self.assertIn("moescope.layer", make_fx(lambda *t: ours(t).y)(*inputs).code)
        self.assertTrue(torch.equal(ours(tensors()).y, expected.y))  # the dispatcher's road gives the same


class Compile(unittest.TestCase):
    def test_fullgraph_over_any_number_of_tokens(self):
        torch._dynamo.reset()
        module = mt.OmniMoE(D, SHARED, 16, 3, dtype=torch.float64).eval()  # the same running averages twice
        compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
        with torch._dynamo.config.patch(error_on_recompile=True):
            for tokens in (5, 9, 33):
                x = torch.randn(tokens, D, dtype=torch.float64, requires_grad=True)
                compiled(x).square().sum().backward()
                gradient, x.grad = x.grad, None
                module(x).square().sum().backward()
                torch.testing.assert_close(gradient, x.grad)

    def test_inductor(self):
        torch._dynamo.reset()
        inputs = tensors(dtype=torch.float32)
        try:
            made = torch.compile(lambda *t: torch.tanh(ours(t).y) * 2, fullgraph=True)(*inputs)
        except Exception as error:  # no compiler for it here
            if "InvalidCxxCompiler" in repr(error) or "No working C++ compiler" in str(error):
                self.skipTest("inductor has no C++ compiler")
            raise
        torch.testing.assert_close(made, torch.tanh(ours(inputs).y) * 2)


class Modules(unittest.TestCase):
    def test_state_dict_of_the_published_module_goes_both_ways(self):
        torch.manual_seed(3)
        twin = PublishedTwin(D, SHARED, 16, 3).double()
        config = published.OmniMoEConfig(D, SHARED, "silu", 16, 3)
        for module in (mt.OmniMoE.from_config(config).double(), published.OmniMoE(config).double()):
            module.load_state_dict(twin.state_dict(), strict=True)
            x = torch.randn(2, 8, D, dtype=torch.float64)
            for mode in (True, False):  # batch statistics, then running ones
                torch.testing.assert_close(module.train(mode)(x), twin.train(mode)(x))
            for name, buffer in module.named_buffers():
                torch.testing.assert_close(buffer, twin.get_buffer(name))
            twin.load_state_dict(module.state_dict(), strict=True)

    def test_training_follows_the_dense_layer(self):
        torch.manual_seed(4)
        twin = PublishedTwin(D, SHARED, 16, 3).double()
        module = mt.OmniMoE(D, SHARED, 16, 3).double()
        module.load_state_dict(twin.state_dict())
        x, target = torch.randn(32, D, dtype=torch.float64), torch.randn(32, D, dtype=torch.float64)
        losses = []
        for one in (twin, module):
            optimizer = torch.optim.Adam(one.parameters(), lr=1e-2)
            history = []
            for _ in range(20):
                optimizer.zero_grad()
                loss = (one(x) - target).square().mean()
                loss.backward()
                optimizer.step()
                history.append(loss.item())
            losses.append(history)
        torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-8, atol=1e-10)
        self.assertLess(losses[1][-1], 0.8 * losses[1][0])

    def test_without_gradients_y_is_the_same(self):
        torch.manual_seed(8)
        module = mt.OmniMoE(D, SHARED, 16, 3, dtype=torch.float64).eval()
        x = torch.randn(2, 8, D, dtype=torch.float64)
        y = module(x)
        told = []
        with torch.no_grad():
            self.assertTrue(torch.equal(module(x), y))
            module.freeze_experts()
            bound = (module.up_embed.weight.norm(dim=1) * module.down_embed.weight.abs().amax(1)).max()
            torch.testing.assert_close(mt.expert_bound(module.up_embed.weight, module.down_embed.weight), bound.float()[None])
            self.assertTrue(torch.equal(module(x), y))
            remove = module.register_routing_hook(lambda tokens, ids, gates: told.append(ids))
            self.assertTrue(torch.equal(module(x), y))
            remove()
        self.assertEqual(len(told), 1)
        inputs = tensors()
        made = mt.layer_output(*inputs[:5], K, shared=tuple(inputs[5:]))
        torch.testing.assert_close(made, ours(inputs).y)
        direction = torch.randn_like(made)
        for one, other in zip(torch.autograd.grad((made * direction).sum(), inputs),
                              torch.autograd.grad((ours(inputs).y * direction).sum(), inputs)):
            torch.testing.assert_close(one, other)

    def test_autocast(self):
        torch.manual_seed(5)
        module = mt.OmniMoE(32, 16, 64, 8)
        x = torch.randn(64, 32)
        expected = module(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, ids, gates = module(x, return_routing=True)
        self.assertEqual((y.dtype, gates.dtype), (torch.bfloat16, torch.float32))
        self.assertTrue(torch.equal(ids, module(x, return_routing=True).ids))  # the router is exact
        self.assertLess(((y.float() - expected).norm() / expected.norm()).item(), 1e-2)
        y.float().square().sum().backward()
        self.assertTrue(all(parameter.grad.dtype == torch.float32 for parameter in module.parameters()))
        with torch.autocast("cpu", dtype=torch.float16), self.assertRaisesRegex(ValueError, "autocast"):
            module(x)

    def test_deterministic(self):
        module = mt.OmniMoE(32, 16, 64, 8)
        x = torch.randn(64, 32)
        runs = []
        torch.use_deterministic_algorithms(True)
        try:
            for threads in (1, 2):
                before = torch.get_num_threads()
                torch.set_num_threads(threads)
                module.zero_grad()
                y = module.eval()(x)
                y.square().sum().backward()
                runs.append([y.detach(), *(parameter.grad.clone() for parameter in (module.up_embed.weight, module.down_embed.weight))])
                torch.set_num_threads(before)
        finally:
            torch.use_deterministic_algorithms(False)
        for one, other in zip(*runs):
            self.assertTrue(torch.equal(one, other))

    def test_peer_and_pkm_follow_their_formulas(self):
        torch.manual_seed(6)
        for module in (mt.PEER(D, 16, 6, heads=2, key_size=3, hidden_act="relu"), mt.PKM(D, 16, 6, heads=2, key_size=3)):
            module.double()
            x = torch.randn(5, D, dtype=torch.float64)
            y, ids, gates = module(x, return_routing=True)
            queries = module.router.queries(x).view(5, 2, 2, 3)
            keys = module.router.keys
            expected = torch.zeros_like(x)
            for head in range(2):
                scores = (queries[:, head, 0] @ keys[head, 0].T)[:, :, None] + (queries[:, head, 1] @ keys[head, 1].T)[:, None]
                best, chosen = scores.flatten(1).topk(3)
                self.assertTrue(torch.equal(chosen.sort()[0], ids[:, 3 * head:3 * head + 3].long().sort()[0]))
                if isinstance(module, mt.PEER):
                    expected += dense_experts(x, module.up_embed.weight, module.down_embed.weight, chosen, best.softmax(-1), "relu")
                else:
                    expected += (best.softmax(-1)[..., None] * module.values.weight[chosen]).sum(1)
            torch.testing.assert_close(y, expected)
            y.sum().backward()
            self.assertTrue(all(parameter.grad is not None for parameter in module.parameters()))

    def test_ffn_systems_follow_their_formulas(self):
        torch.manual_seed(7)
        for module in (mt.GShard(D, 4, 8, 2), mt.DeepSeekMoE(D, 4, 5, 8, 3)):
            module.double()
            x = torch.randn(9, D, dtype=torch.float64)
            y, ids, gates = module(x, return_routing=True)
            probability = F.linear(x, module.router.weight).softmax(-1)
            best, chosen = probability.topk(ids.shape[-1])
            weights = best / best.sum(-1, keepdim=True) if type(module) is mt.GShard else best
            self.assertTrue(torch.equal(ids, chosen))
            every = torch.einsum("eif,ltef->ltei", module.down, (F.silu(torch.einsum("efi,li->lef", module.gate, x)) *
                                                                torch.einsum("efi,li->lef", module.up, x))[:, None])[:, 0]
            expected = (weights[..., None] * every.gather(1, chosen[..., None].expand(-1, -1, D))).sum(1)
            if isinstance(module, mt.DeepSeekMoE):
                expected += F.linear(F.silu(module.gate_proj(x)) * module.up_proj(x), module.down_proj.weight)
            torch.testing.assert_close(y, expected)

    def test_auxiliary_losses(self):
        rows, cols = torch.zeros(8, NR, dtype=torch.float64), torch.zeros(8, NC, dtype=torch.float64)
        ids = torch.arange(NR * NC).repeat(8, 1)
        self.assertAlmostEqual(mt.balance_loss(rows, cols, ids).item(), 1)
        rows, cols = torch.randn(8, NR, dtype=torch.float64), torch.randn(8, NC, dtype=torch.float64)
        ids = mt.select(rows, cols, K).ids
        fractions = torch.bincount(ids.flatten(), minlength=NR * NC).double() / ids.numel()
        probability = (rows.softmax(-1)[:, :, None] * cols.softmax(-1)[:, None]).flatten(1)
        self.assertAlmostEqual(mt.balance_loss(rows, cols, ids).item(), NR * NC * (probability @ fractions).mean().item())
        self.assertAlmostEqual(mt.z_loss(rows, cols).item(), ((rows.exp().sum(-1) * cols.exp().sum(-1)).log()**2).mean().item())

    def test_published_functions(self):
        x, rows, cols, w_in, w_out, gate, up, down = tensors(dtype=torch.float32, requires_grad=False)
        cols = torch.randn(7, NR)
        scores, ids = published.triton_omni_router_func(rows, cols, NR, K)
        expected, chosen = (rows[:, :, None] + cols[:, None]).flatten(1).topk(K)
        torch.testing.assert_close(scores, expected)
        self.assertTrue(torch.equal(ids.long(), chosen))
        torch.testing.assert_close(published.triton_omni_expert_func(x, w_in, w_out, scores.exp(), ids),
                                   dense_experts(x, w_in, w_out, ids, scores.exp()))
        torch.testing.assert_close(published.triton_omni_mlp_func(x, gate, up, down), F.linear(F.silu(x @ gate.T) * (x @ up.T), down))
        with self.assertRaisesRegex(ValueError, "router_logits_y"):
            published.triton_omni_router_func(rows, cols, NR, K) and published.triton_omni_router_func(rows, cols[:, :2], NR, K)

    def test_modules_refuse_what_cannot_be(self):
        for words, make in (("num_experts: 15", lambda: mt.OmniMoE(D, 0, 15, 3)), ("num_experts_per_token: 17", lambda: mt.OmniMoE(D, 0, 16, 17)),
                            ("hidden_act: 'tanh'", lambda: mt.OmniMoE(D, 0, 16, 3, "tanh")), ("heads 4", lambda: mt.PEER(D, 16, 6, heads=4)),
                            ("num_experts_per_token: 9", lambda: mt.GShard(D, 4, 8, 9)), ("shared_size: 0", lambda: mt.DeepSeekMoE(D, 4, 0, 8, 2))):
            with self.assertRaisesRegex(ValueError, words):
                make()


if __name__ == "__main__":
    unittest.main()
