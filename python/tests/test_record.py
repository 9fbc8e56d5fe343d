"""moescope.record: what models route, as files that the program reads. Skips where PyTorch is not installed."""
import json
import tempfile
import unittest
from pathlib import Path

try:
    import numpy as np
    import torch
except ModuleNotFoundError as missing:
    raise unittest.SkipTest(f"{missing.name} is not installed") from None

import moescope
import moescope.torch as mt
from moescope import record

D, EXPERTS, K = 16, 64, 4
try:
    moescope.program_path()
    HAVE_PROGRAM = True
except FileNotFoundError:
    HAVE_PROGRAM = False


def model(layer=lambda: mt.OmniMoE(D, 8, EXPERTS, K)):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(D, D), layer(), torch.nn.Tanh(), layer()).eval()


class FlatGate(torch.nn.Module):
    """A router as in other models: logits, or ids with gates."""

    def __init__(self, gives):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(10, D))
        self.gives = gives

    def forward(self, x):
        logits = x @ self.weight.T
        values, ids = logits.softmax(-1).topk(3)
        return {"logits": logits, "pair": (logits, values), "ids": (ids, values, None), "all": (ids, values, logits)}[self.gives]


class Host(torch.nn.Module):
    def __init__(self, gives):
        super().__init__()
        self.mlp = torch.nn.ModuleDict({"gate": FlatGate(gives)})

    def forward(self, x):
        self.mlp["gate"](x)
        return x


class Record(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def trace(self, recording, **options):
        recording.save_trace(self.folder / "trace.npz", **options)
        return dict(np.load(self.folder / "trace.npz"))

    def test_our_modules(self):
        net = model()
        x = torch.randn(3, 5, D)
        with record.Recorder(net) as routing:
            net(x)
            net(x[:1])
        net(x)  # after the block nothing is recorded
        self.assertEqual(list(routing.layers), ["1", "3"])
        made = self.trace(routing)
        self.assertEqual((str(made["system"]), made["expert_ids"].shape), ("omnimoe", (2, 20, K)))
        _, ids, gates = net[1](net[0](x).flatten(0, 1), return_routing=True)
        order = ids.argsort(-1)
        np.testing.assert_array_equal(made["expert_ids"][0, :15], ids.gather(-1, order).numpy())
        np.testing.assert_allclose(made["gates"][0, :15], gates.gather(-1, order).detach().numpy(), rtol=1e-6)
        np.testing.assert_array_equal(made["expert_ids"][0, 15:], made["expert_ids"][0, :5])
        np.testing.assert_array_equal(routing.counts("1").numpy(), np.bincount(made["expert_ids"][0].ravel(), minlength=EXPERTS))

    def test_statistics(self):
        recording = record.Recording()
        layer = record.LayerRouting("one", "gshard", 4, 2, grid_cols=4)
        layer.add(torch.tensor([[0, 1], [0, 2], [0, 1]]), None, None, 2)
        recording.layers["one"] = layer
        made, = recording.statistics()
        loads = np.array([3, 2, 1, 0]) / 6
        difference = np.abs(loads[:, None] - loads[None]).sum() / (2 * 4 * loads.sum())
        self.assertEqual((made["tokens"], made["pairs"], made["used"], made["max_over_mean"]), (3, 6, 3, 2.0))
        self.assertAlmostEqual(made["gini"], difference)
        self.assertAlmostEqual(made["entropy"], -sum(p * np.log(p) for p in loads if p > 0) / np.log(4))
        self.assertEqual(self.trace(recording)["expert_ids"].shape, (1, 2, 2))  # two were kept, three counted

    def test_routers_of_other_models(self):
        x = torch.randn(2, 6, D)
        for gives, options in (("logits", {"top_k": 3}), ("pair", {"top_k": 3}), ("ids", {"num_experts": 10}), ("all", {})):
            torch.manual_seed(1)
            host = Host(gives)
            with record.Recorder(host, routers="*.gate", gate_mode="probability", **options) as routing:
                host(x)
            made = self.trace(routing)
            probability = (x.flatten(0, 1) @ host.mlp["gate"].weight.T).softmax(-1)
            values, ids = probability.topk(3)
            order = ids.argsort(-1)
            np.testing.assert_array_equal(made["expert_ids"][0], ids.gather(-1, order).numpy(), err_msg=gives)
            np.testing.assert_allclose(made["gates"][0], values.gather(-1, order).detach().numpy(), rtol=1e-5)
            self.assertEqual(int(made["num_experts"]), 10)

    def test_router_logits_of_transformers(self):
        logits = [torch.randn(7, 12), None, torch.randn(7, 12)]
        routing = record.from_router_logits(logits, top_k=2)
        made = self.trace(routing)
        self.assertEqual(made["expert_ids"].shape, (2, 7, 2))
        ids = np.sort(np.argsort(-logits[2].numpy(), axis=-1)[:, :2], axis=-1)
        np.testing.assert_array_equal(made["expert_ids"][1], ids)
        exponentials = np.exp(np.take_along_axis(logits[2].numpy(), ids, -1))
        np.testing.assert_allclose(made["gates"][1], exponentials / exponentials.sum(-1, keepdims=True), rtol=1e-5)
        for mode in ("sigmoid", "sigmoid_normalised"):
            self.assertNotIn("gate_mode", self.trace(record.from_router_logits(logits, top_k=2, gate_mode=mode)))

    @unittest.skipUnless(HAVE_PROGRAM, "no program moescope")
    def test_the_program_reads_every_system(self):
        makers = (lambda: mt.OmniMoE(D, 8, EXPERTS, K), lambda: mt.GShard(D, 8, 16, 2), lambda: mt.DeepSeekMoE(D, 8, 8, 16, 3))
        for make in makers:
            net = model(make)
            with record.Recorder(net) as routing:
                net(torch.randn(40, D))
            self.trace(routing)
            printed = moescope.inspect(self.folder / "trace.npz")
            self.assertIn(routing.layers["1"].system, printed)
        net = model(lambda: mt.PEER(D, 16, 4, heads=2, key_size=4))
        with record.Recorder(net) as routing:
            net(torch.randn(40, D))
        made = self.trace(routing, layers=["1"])
        self.assertEqual(made["expert_ids"].shape, (1, 80, 2))

    @unittest.skipUnless(HAVE_PROGRAM, "no program moescope")
    def test_a_snapshot_routes_in_the_program_as_in_the_model(self):
        cases = ((lambda: mt.OmniMoE(D, 8, EXPERTS, K), K, "omnimoe", "probability"), (lambda: mt.GShard(D, 8, 16, 2), 2, "gshard", "softmax"),
                 (lambda: mt.DeepSeekMoE(D, 8, 8, 16, 3), 3, "deepseekmoe", "probability"))
        for make, top_k, system, gates in cases:
            net = model(make)
            net.train()
            for _ in range(5):
                net(torch.randn(64, D))  # running averages worth folding
            net.eval()
            with record.Recorder(net, keep_hidden=True) as routing:
                net(torch.randn(50, D))
            snapshot, saved = self.folder / f"{system}.safetensors", self.folder / f"{system}.trace.safetensors"
            routing.save_snapshot(snapshot, "3")
            words = ("--system", system, "--workload", f"snapshot:{snapshot}", "--dtype", "fp32", "--gates", gates)
            moescope.command("inspect", *words, "--save-trace", saved)
            data = saved.read_bytes()
            start = 8 + int.from_bytes(data[:8], "little")
            described = json.loads(data[8:start])["expert_ids"]
            self.assertEqual(described["dtype"], "I32")
            again = np.frombuffer(data, np.int32, 50 * top_k, start + described["data_offsets"][0])
            np.testing.assert_array_equal(again.reshape(50, top_k), np.sort(routing.layers["3"].all_ids(), axis=-1), err_msg=system)
            checked = moescope.command("run", *words, "--min-samples", "3", "--max-time", "0.02")
            self.assertIn("error", checked.stdout)

    def test_compiled_modules_are_recorded(self):
        net = model()
        compiled = torch.compile(net, backend="eager")
        with record.Recorder(net) as routing:
            compiled(torch.randn(8, D))
        self.assertEqual(routing.layers["1"].tokens, 8)

    def test_errors(self):
        net, host = model(), Host("logits")
        cases = (
            ("has no module of moescope.torch", lambda: record.Recorder(torch.nn.Linear(2, 2))),
            ("routers: 'nothing'", lambda: record.Recorder(net, routers="nothing")),
            ("max_tokens: 0", lambda: record.Recorder(net, max_tokens=0)),
            ("gate_mode: 'tanh'", lambda: record.Recorder(net, gate_mode="tanh")),
            ("no routing was recorded", lambda: record.Recorder(net).save_trace(self.folder / "x.npz")),
            ("must end in .npz", lambda: record.Recorder(net).save_trace(self.folder / "x.pt")),
            ("top_k 13 must be", lambda: record.from_router_logits([torch.randn(2, 12)], top_k=13)),
        )
        for words, call in cases:
            with self.assertRaises(record.RecordError) as caught:
                call()
            self.assertIn(words, str(caught.exception))
        for options, words in (({}, "top_k must say"), ({"top_k": 11}, "top_k 11 must be")):
            with record.Recorder(host, routers="*.gate", **options), self.assertRaisesRegex(record.RecordError, words):
                host(torch.randn(2, D))
        with record.Recorder(Host("ids"), routers="*.gate") as routing, self.assertRaisesRegex(record.RecordError, "num_experts"):
            next(iter(routing._modules.values()))(torch.randn(2, D))
        with record.Recorder(net) as routing:
            net(torch.randn(4, D))
        with self.assertRaisesRegex(record.RecordError, "keep_hidden"):
            routing.save_snapshot(self.folder / "x.safetensors", "1")
        self.assertEqual(list(self.folder.iterdir()), [])  # nothing half-written

    @unittest.skipUnless(torch.cuda.is_available(), "no CUDA device")
    def test_recording_does_not_wait_for_the_device(self):
        host = Host("logits").cuda()
        x = torch.randn(64, D, device="cuda")
        with record.Recorder(host, routers="*.gate", top_k=3, max_tokens=100):
            host(x)
            torch.cuda.set_sync_debug_mode("error")
            try:
                host(x)
            finally:
                torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":
    unittest.main()
