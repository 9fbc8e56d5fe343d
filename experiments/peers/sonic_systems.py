#!/usr/bin/env python3
"""SonicMoE's own kernels (arXiv 2512.14080, github.com/Dao-AILab/sonic-moe) on the shapes of `moescope run --system`.

FFN experts alone, forward: gshard and deepseekmoe at paper Table A, or any points. Protocol and row schema are those of torch_peers.py;
rows have `backend` "sonicmoe". Inputs are torch_systems.Layer's, so that both programs time the same layer. Nothing of moescope needs it:

  pip install sonic-moe==0.1.2.post1 nvidia-cutlass-dsl==4.4.2 quack-kernels==0.3.11   (Python 3.12, PyTorch 2.7 or later, a Hopper GPU)
  python3 experiments/peers/sonic_systems.py --out results/sonic_systems
  python3 experiments/peers/sonic_systems.py --out results/sonic_systems --systems gshard --points 4096,2 --rounding nearest up

  python3 experiments/peers/sonic_systems.py --out results/sonic_systems --points --traces routing.npz#layer=0 --expert-size 512

--kernels FOLDER takes its matrix products from there, compiled ahead by sonic_ahead.py, where CuTe DSL is not installed. --traces are recorded
routings of FFN experts: .npz with expert_ids [layers, L, K] and gates likewise, as `moescope run --system gshard --workload trace:FILE#layer=0`.

Column `schedule`: expert_centric (every pair), token_rounding[:up|down] (their rule, tiles of 128 rows: pairs are chosen here as their
benchmarks/moe-token-rounding.py chooses them). Stage `layer` has the router, its softmax over the top K and, of deepseekmoe, the shared
expert in PyTorch; `experts` is on given routing. Each is replayed as a CUDA graph where it can be captured; the row's reason says which.
Checked against fp64 on three tokens with the pairs that ran (relative_error). Beside them: `moescope run --system gshard --backend cuda`.
"""

import argparse
import functools
import pathlib
import sys

import torch_peers
import torch_systems

PACKAGES = "sonic-moe==0.1.2.post1 nvidia-cutlass-dsl==4.4.2 quack-kernels"
TILE = 128
SYSTEMS = ["gshard", "deepseekmoe"]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for rows.jsonl")
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, choices=SYSTEMS)
    parser.add_argument("--points", nargs="*", metavar="L[,K]", help="default: paper Table A, both sweeps; none: no points")
    parser.add_argument("--traces", nargs="+", default=[], metavar="FILE#layer=N", help="recorded routings of gshard's kind of experts")
    parser.add_argument("--expert-size", type=int, default=512, help="width of an expert under --traces (default 512)")
    parser.add_argument("--kernels", type=pathlib.Path, help="folder of sonic_ahead.py's products")
    parser.add_argument("--rounding", nargs="*", default=["nearest"], choices=["nearest", "up", "down"],
                        help="token rounding beside every pair (default nearest; none: no names)")
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--samples", type=int, default=21)
    parser.add_argument("--l2", choices=("cold", "warm"), default="cold")
    arguments = parser.parse_args()
    if arguments.samples < 10:
        parser.error("--samples: at least 10")
    arguments.max_bytes = 4 << 30  # what torch_systems.Layer asks for
    return arguments


class Rows(torch_peers.Rows):
    """The same rows under this backend's name."""

    backend = "sonicmoe"


class RecordedLayer(torch_systems.Layer):
    """gshard's experts with random weights under recorded routing. Stage `layer` is permutation and experts: no router runs."""

    def __init__(self, torch, arguments, trace, gated):
        import numpy

        file, _, place = trace.partition("#layer=")
        with numpy.load(file) as arrays:
            ids, gates = (arrays[name][int(place or 0)] for name in ("expert_ids", "gates"))
            experts = int(arrays["num_experts"]) if "num_experts" in arrays else int(arrays["expert_ids"].max()) + 1
        width = torch_systems.EXTENTS["gshard"]
        torch_systems.EXTENTS["recorded"] = {**width, "experts": experts, "width": arguments.expert_size}
        super().__init__(torch, arguments, "recorded", len(ids), ids.shape[1], gated)
        self.system, self.workload = "gshard", f"trace:{pathlib.Path(file).name}#layer={place or 0}"
        order = numpy.argsort(ids, axis=1, kind="stable")
        self.ids = torch.from_numpy(numpy.take_along_axis(ids, order, 1).astype("int64")).cuda()
        self.gates = torch.from_numpy(numpy.take_along_axis(gates, order, 1).astype("float32")).cuda()

    def select(self):
        return self.ids, self.gates


class Pairs:
    """What runs: tokens ascending, their experts, their gates in fp32."""

    def __init__(self, tokens, experts, gates):
        self.tokens, self.experts, self.gates = tokens.int(), experts.int(), gates.float()


def every_pair(torch, ids, gates):
    tokens = torch.arange(len(ids), device=ids.device).repeat_interleave(ids.shape[1])
    return Pairs(tokens, ids.flatten(), gates.flatten())


def rounded_pairs(torch, logits, ids, gates, how):
    """Every expert's tokens rounded to whole tiles. Chosen pairs come first, by gate; then others, by probability."""
    scores = torch.softmax(logits.float(), dim=1)
    order = scores - 1
    scores.scatter_(1, ids, gates.float())
    order.scatter_(1, ids, gates.float())
    loads = torch.bincount(ids.flatten(), minlength=logits.shape[1])
    wanted = {"nearest": torch.round(loads / TILE), "up": torch.ceil(loads / TILE), "down": loads // TILE}[how] * TILE
    place = torch.argsort(torch.argsort(order, dim=0, descending=True, stable=True), dim=0)
    tokens, experts = torch.nonzero(place < wanted, as_tuple=True)  # row by row, hence by token
    return Pairs(tokens, experts, scores[tokens, experts])


class Sonic:
    """torch_systems.Layer's weights as SonicMoE takes them."""

    def __init__(self, torch, layer):
        import sonicmoe
        from sonicmoe.enums import ActivationType

        self.torch, self.layer, self.run = torch, layer, sonicmoe.moe_general_routing_inputs
        self.activation = ActivationType.SWIGLU
        # [N, 2 f, d] with gate and up rows in turn, seen as (2 f, d, N); [N, d, f] seen as (d, f, N).
        gate, up = layer.gate_up.chunk(2, dim=1)
        interleaved = torch.stack([gate, up], dim=2).flatten(1, 2).contiguous()
        self.w1, self.w2 = interleaved.permute(1, 2, 0), layer.down.permute(1, 2, 0)

    def experts(self, pairs):
        stream = self.torch.cuda.current_stream().cuda_stream
        return self.run(self.layer.x, pairs.gates, pairs.tokens, pairs.experts, self.w1, None, self.w2, None,
                        self.layer.num_experts, stream, self.activation, True)[0]

    def layer_of(self, how):
        torch, layer = self.torch, self.layer
        ids, gates = layer.select()
        if how is None:
            pairs = every_pair(torch, ids, gates)
        else:
            pairs = rounded_pairs(torch, layer.x @ layer.router.T, ids, gates, how)
        y = self.experts(pairs)
        return y + layer.mlp() if layer.shared_size else y

    def relative_error(self, y, pairs):
        """Against fp64 on three tokens with the pairs that ran."""
        torch, layer = self.torch, self.layer
        tokens = sorted({0, layer.num_tokens // 2, layer.num_tokens - 1})
        reference = []
        for token in tokens:
            x = layer.x[token].double()
            total = torch.zeros_like(x)
            own = pairs.tokens == token
            for expert, gate in zip(pairs.experts[own].tolist(), pairs.gates[own].double()):
                gated, up = (layer.gate_up[expert].double() @ x).chunk(2)
                total += gate * (layer.down[expert].double() @ (torch.nn.functional.silu(gated) * up))
            reference.append(total)
        reference = torch.stack(reference)
        norm = reference.norm()
        return ((y[tokens].double() - reference).norm() / norm).item() if norm > 0 else 0.0


def measure_layer(torch, rows, timer, layer, roundings, products):
    num_tokens = layer.num_tokens
    sonic = Sonic(torch, layer)
    ids, gates = layer.select()
    logits = layer.x @ layer.router.T
    for how in [None, *roundings]:
        schedule = "expert_centric" if how is None else "token_rounding" + ("" if how == "nearest" else f":{how}")
        pairs = every_pair(torch, ids, gates) if how is None else rounded_pairs(torch, logits, ids, gates, how)
        if how is not None:
            chosen = torch.zeros(num_tokens, layer.num_experts, dtype=torch.bool, device="cuda").scatter_(1, ids, True)
            kept = int(chosen[pairs.tokens.long(), pairs.experts.long()].sum())
            for metric, value in (("dropped_pairs", ids.numel() - kept), ("added_pairs", len(pairs.tokens) - kept)):
                rows.row(layer, schedule, "experts", metric, "pairs", value)
        if len(pairs.tokens) == 0:
            rows.row(layer, schedule, "experts", "time_s", "s", None, samples=0, reason="no expert has half a tile of tokens")
            continue
        error = sonic.relative_error(sonic.experts(pairs), pairs)
        for stage, call, known in (("experts", functools.partial(sonic.experts, pairs), error), ("layer", functools.partial(sonic.layer_of, how), None)):
            work, how_run = torch_systems.as_graph(torch, call)
            if products:
                how_run += "; " + ", ".join(form.last for form in products)
            torch_systems.measure(torch, rows, timer, layer, schedule, stage, work, how_run, known)
        del work
        torch.cuda.empty_cache()


def main():
    arguments = parse_arguments()
    try:
        import torch
    except ImportError:
        sys.exit(f"sonic_systems: PyTorch is not installed; this peer needs it, and pip install {PACKAGES}")
    products = ()
    try:
        if arguments.kernels:
            import sonic_ahead

            products = sonic_ahead.use(torch, arguments.kernels)
        import sonicmoe
    except ImportError as missing:
        sys.exit(f"sonic_systems: SonicMoE cannot be imported ({missing}); pip install {PACKAGES} (Python 3.12 or later)")
    if not torch.cuda.is_available():
        sys.exit("sonic_systems: PyTorch sees no CUDA device")

    def gated(gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    torch._dynamo.config.suppress_errors = True
    rows = Rows(arguments.out, torch, {"sonicmoe": sonicmoe.__version__})
    timer = torch_peers.Timer(torch, arguments.samples, arguments.l2)
    gated = torch.compile(gated, dynamic=True)
    recorded = [roundings for roundings in arguments.rounding if roundings == "down"]  # the others ask for a router
    subjects = [(f"{system} L={point[0]} K={point[1]}", arguments.rounding, functools.partial(torch_systems.Layer, torch, arguments, system, *point, gated))
                for system in arguments.systems for point in ([] if arguments.points == [] else torch_systems.points_of(arguments, system))]
    subjects += [(trace, recorded, functools.partial(RecordedLayer, torch, arguments, trace, gated)) for trace in arguments.traces]
    with torch.inference_mode():
        for name, roundings, make in subjects:
            try:
                measure_layer(torch, rows, timer, make(), roundings, products)
            except (RuntimeError, AssertionError, torch.cuda.OutOfMemoryError) as failure:
                print(f"{name}: failed: {str(failure).splitlines()[:1]}", flush=True)
            torch.cuda.empty_cache()
    if timer.discarded:
        print(f"{timer.discarded} samples dropped for low SM clocks", flush=True)


if __name__ == "__main__":
    main()
