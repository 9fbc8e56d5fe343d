#!/usr/bin/env python3
"""The baseline systems as a researcher would write them in PyTorch, timed on the shapes of `moescope run --system`.

Like torch_peers.py, whose protocol and row schema it shares: PyTorch is no dependency, rows have `backend` "torch".

  python3 experiments/peers/torch_systems.py --out results/torch_systems
  python3 experiments/peers/torch_systems.py --out results/torch_systems --systems gshard peer --points 1024 4096,2

Points are L or L,K; the default is paper Table A: both sweeps. Extents are those of moescope's presets (core/systems/system_presets.cpp).

dense_mlp     one product for gate and up, fused activation, down
gshard        router, topk, tokens sorted by expert, two grouped_mm, gather and weighted sum; `loop` instead of grouped_mm
deepseekmoe   the same with probabilities of all experts as gates, and a shared expert
pkm           queries, layer norm, sorted halves and candidates (i + 1)(j + 1) <= K, embedding_bag
peer          the same selection, gathered rows of w_in in batched products, gelu, embedding_bag over w_out
pkm, peer     also dense_masked: gates scattered into [L, N] and products with all of w_in and w_out, whatever K is

Column `schedule`: grouped_mm, loop, gather, dense_masked, or none. Stage `layer` is replayed as a CUDA graph where it can be captured
(everything but `loop`, which reads the experts' loads on the host); `experts` is timed alone, eagerly, on given routing
as well. The row's reason says which. Elementwise parts are compiled (torch.compile) unless --eager.
Checked against fp64 on three tokens with the routing that ran (relative_error).
"""

import argparse
import functools
import math
import pathlib
import statistics
import sys

import torch_peers

# N, routed width, shared width, heads, key size, smallest K, the sweep over K; d = 1024 throughout.
EXTENTS = {
    "dense_mlp": {"shared": 4096, "sweep": [0]},
    "gshard": {"experts": 128, "width": 512, "sweep": [2, 4, 8, 16]},
    "deepseekmoe": {"experts": 256, "width": 256, "shared": 1024, "sweep": [4, 8, 16, 32]},
    "pkm": {"experts": 444 * 444, "heads": 4, "key_size": 128, "sweep": [2500, 5000, 12500, 25000]},
    "peer": {"experts": 320 * 320, "heads": 10, "key_size": 128, "sweep": [1250, 2500, 6250, 12500]},
}
TOKENS = [1024, 2048, 4096, 8192, 16384]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for rows.jsonl")
    parser.add_argument("--systems", nargs="+", default=list(EXTENTS), choices=EXTENTS)
    parser.add_argument("--points", nargs="+", metavar="L[,K]", help="default: paper Table A, both sweeps")
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--samples", type=int, default=21)
    parser.add_argument("--l2", choices=("cold", "warm"), default="cold")
    parser.add_argument("--max-bytes", type=int, default=4 << 30, help="limit of one intermediate tensor")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--loop", action="store_true", help="FFN experts also one by one")
    arguments = parser.parse_args()
    if arguments.samples < 10:
        parser.error("--samples: at least 10")
    return arguments


def points_of(arguments, system):
    sweep = EXTENTS[system]["sweep"]
    if arguments.points:
        parsed = [[int(n) for n in point.split(",")] for point in arguments.points]
        return [(p[0], p[1] if len(p) > 1 and sweep != [0] else sweep[0]) for p in parsed]
    return [(TOKENS[0], top_k) for top_k in sweep] + [(tokens, sweep[0]) for tokens in TOKENS[1:]]


def grouped_mm(torch):
    return getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm


class Layer:
    """One baseline at one point. The fields are what torch_peers.Rows writes of a point."""

    def __init__(self, torch, arguments, system, num_tokens, top_k, gated):
        extents = EXTENTS[system]
        self.torch, self.system, self.gated, self.max_bytes = torch, system, gated, arguments.max_bytes
        self.num_tokens, self.top_k, self.hidden_size = num_tokens, top_k or 1, arguments.hidden_size
        self.num_experts, self.width = extents.get("experts", 1), extents.get("width", 0)
        self.shared_size, self.heads = extents.get("shared", 0), extents.get("heads", 1)
        self.key_size, self.per_head = extents.get("key_size", 0), self.top_k // self.heads
        self.side = math.isqrt(self.num_experts) if self.key_size else 0
        self.rows, self.cols = (self.side, self.side) if self.side else (1, self.num_experts)
        self.activation = {"pkm": "none", "peer": "gelu"}.get(system, "silu")
        self.gates_mode = {"dense_mlp": "none", "deepseekmoe": "probability"}.get(system, "softmax")
        self.seed, self.l2, self.workload = arguments.seed, arguments.l2, "gaussian:1"
        generator = torch.Generator(device="cuda").manual_seed(arguments.seed)

        def normal(*shape, scale=1.0):
            return (torch.randn(*shape, generator=generator, device="cuda") * scale).to(torch.bfloat16)

        d, n, f, h = self.hidden_size, self.num_experts, self.width, self.shared_size
        self.x = normal(num_tokens, d)
        if f:
            self.router = normal(n, d, scale=d**-0.5)
            self.gate_up, self.down = normal(n, 2 * f, d, scale=d**-0.5), normal(n, d, f, scale=f**-0.5)
        if h:
            self.shared_gate_up, self.shared_down = normal(2 * h, d, scale=d**-0.5), normal(d, h, scale=h**-0.5)
        if self.side:
            self.queries = normal(2 * self.heads * self.key_size, d, scale=d**-0.5)
            self.keys = normal(2 * self.heads, self.side, self.key_size, scale=(2 * self.key_size) ** -0.5)
            self.w_out = normal(n, d, scale=d**-0.5)
            self.w_in = normal(n, d, scale=d**-0.5) if system == "peer" else None
            i = torch.arange(min(self.side, self.per_head), device="cuda")
            self.candidates = torch.nonzero((i.unsqueeze(1) + 1) * (i.unsqueeze(0) + 1) <= self.per_head, as_tuple=True)

    def extents(self):
        """What rows say of the extents that not every system has."""
        keys = {"heads": self.heads, "key_size": self.key_size} if self.side else {}
        experts = {"expert_size": self.width} if self.width else {}
        return {"shared_size": self.shared_size, **experts, **keys}

    def mlp(self):
        functional = self.torch.nn.functional
        return functional.linear(self.gated(functional.linear(self.x, self.shared_gate_up)), self.shared_down)

    def select(self):
        return self.select_keys() if self.side else self.select_ffn()

    def select_ffn(self):
        torch = self.torch
        logits = (self.x @ self.router.T).float()
        if self.gates_mode == "probability":
            gates, ids = torch.softmax(logits, dim=1).topk(self.top_k, dim=1)
        else:
            best, ids = logits.topk(self.top_k, dim=1)
            gates = torch.softmax(best, dim=1)
        return ids, gates

    def select_keys(self):
        """(ids, gates), [L, K], heads one after the other."""
        torch = self.torch
        count, halves = self.num_tokens, 2 * self.heads
        q = (self.x @ self.queries.T).view(count, halves, self.key_size)
        if self.system == "pkm":
            q = torch.nn.functional.layer_norm(q, (self.key_size,))
        scores = torch.bmm(q.transpose(0, 1), self.keys.transpose(1, 2)).float()  # [2 H, L, n]
        scores = scores.view(self.heads, 2, count, self.side)
        i, j = self.candidates
        parts = []
        for tokens in torch_peers.token_chunks(self, 4 * self.heads * len(i) * 3, self.max_bytes):
            row, row_ids = torch.sort(scores[:, 0, tokens], dim=2, descending=True)
            col, col_ids = torch.sort(scores[:, 1, tokens], dim=2, descending=True)
            best, at = (row[:, :, i] + col[:, :, j]).topk(self.per_head, dim=2)
            ids = torch.gather(row_ids, 2, i[at]) * self.side + torch.gather(col_ids, 2, j[at])
            parts.append((ids.transpose(0, 1).flatten(1), torch.softmax(best, dim=2).transpose(0, 1).flatten(1)))
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def experts(self, ids, gates, schedule):
        if schedule == "dense_masked":
            return self.dense_masked(ids, gates)
        if self.side:
            return self.pkm(ids, gates) if self.system == "pkm" else self.peer(ids, gates)
        return self.ffn(ids, gates, schedule == "loop")

    def dense_masked(self, ids, gates):
        outputs = []
        for tokens in torch_peers.token_chunks(self, 4 * self.num_experts, self.max_bytes):
            p = self.torch.zeros(len(ids[tokens]), self.num_experts, dtype=self.w_out.dtype, device="cuda")
            p.scatter_add_(1, ids[tokens], gates[tokens].to(p.dtype))  # heads may choose the same expert
            if self.w_in is not None:
                p *= self.torch.nn.functional.gelu(self.x[tokens] @ self.w_in.T)
            outputs.append(p @ self.w_out)
        return self.torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def ffn(self, ids, gates, loop):
        torch = self.torch
        flat = ids.flatten()
        order = torch.argsort(flat, stable=True)
        loads = torch.bincount(flat, minlength=self.num_experts) if loop else torch.zeros(
            self.num_experts, dtype=torch.int64, device="cuda").scatter_add_(0, flat, torch.ones_like(flat))
        rows = self.x[order // self.top_k]
        if loop:
            results = torch.empty_like(rows)
            end = 0
            for expert, load in enumerate(loads.tolist()):
                begin, end = end, end + load
                if load:
                    hidden = self.gated(rows[begin:end] @ self.gate_up[expert].T)
                    results[begin:end] = hidden @ self.down[expert].T
        else:
            ends = loads.cumsum(0).int()
            product = grouped_mm(torch)
            hidden = self.gated(product(rows, self.gate_up.transpose(1, 2), offs=ends))
            results = product(hidden, self.down.transpose(1, 2), offs=ends)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device="cuda")
        return torch.bmm(gates.to(results.dtype).unsqueeze(1),
                         results[place].view(self.num_tokens, self.top_k, -1)).squeeze(1)

    def pkm(self, ids, gates):
        return self.torch.nn.functional.embedding_bag(ids, self.w_out, per_sample_weights=gates.to(self.w_out.dtype),
                                                      mode="sum")

    def peer(self, ids, gates):
        functional = self.torch.nn.functional
        outputs = []
        for tokens in torch_peers.token_chunks(self, 2 * self.top_k * self.hidden_size, self.max_bytes):
            scores = self.torch.bmm(self.w_in[ids[tokens]], self.x[tokens].unsqueeze(2)).squeeze(2)
            weights = functional.gelu(scores) * gates[tokens].to(scores.dtype)
            outputs.append(functional.embedding_bag(ids[tokens], self.w_out, per_sample_weights=weights, mode="sum"))
        return self.torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def layer(self, schedule):
        if self.system == "dense_mlp":
            return self.mlp()
        y = self.experts(*self.select(), schedule)
        return y + self.mlp() if self.shared_size else y

    def relative_error(self, y, ids, gates):
        """Of the experts' sum (or the dense MLP) against fp64 on three tokens."""
        torch, functional = self.torch, self.torch.nn.functional
        tokens = sorted({0, self.num_tokens // 2, self.num_tokens - 1})
        reference = []
        for token in tokens:
            x = self.x[token].double()

            def ffn(gate_up, down):
                gate, up = (gate_up.double() @ x).chunk(2)
                return down.double() @ (functional.silu(gate) * up)

            if self.system == "dense_mlp":
                reference.append(ffn(self.shared_gate_up, self.shared_down))
                continue
            p = gates[token].double()
            if self.width:
                reference.append(sum(p[k] * ffn(self.gate_up[e], self.down[e]) for k, e in enumerate(ids[token].tolist())))
                continue
            if self.w_in is not None:
                p = p * functional.gelu(self.w_in[ids[token]].double() @ x)
            reference.append(p @ self.w_out[ids[token]].double())
        reference = torch.stack(reference)
        return ((y[tokens].double() - reference).norm() / reference.norm()).item()


def as_graph(torch, work):
    """(what to time, how it runs)."""
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay, "CUDA graph"
    except RuntimeError as failure:
        torch.cuda.synchronize()
        return work, "eager: " + str(failure).splitlines()[0]


def measure(torch, rows, timer, layer, schedule, stage, work, how, error=None):
    label = f"{layer.system} L={layer.num_tokens} K={layer.top_k} {schedule}/{stage}"
    try:
        times = timer.times(work)
    except (RuntimeError, torch.cuda.OutOfMemoryError) as failure:
        reason = str(failure).splitlines()[0]
        rows.row(layer, schedule, stage, "time_s", "s", None, samples=0, reason=reason)
        print(f"{label}: failed: {reason}", flush=True)
        return
    median = statistics.median(times)
    for metric, value in (("time_s", median), ("time_min_s", min(times)), ("time_max_s", max(times))):
        rows.row(layer, schedule, stage, metric, "s", value, len(times),
                 (max(times) - min(times)) / median if metric == "time_s" else None, how)
    if error is not None:
        rows.row(layer, schedule, stage, "relative_error", "fraction", error if math.isfinite(error) else None,
                 samples=1 if math.isfinite(error) else 0, reason="" if math.isfinite(error) else "output is not finite")
    print(f"{label}: {median * 1e3:.4f} ms ({min(times) * 1e3:.4f} to {max(times) * 1e3:.4f}, n = {len(times)}; {how})"
          + (f", relative error {error:.2e}" if error is not None else ""), flush=True)


def measure_point(torch, rows, timer, arguments, system, num_tokens, top_k, gated):
    layer = Layer(torch, arguments, system, num_tokens, top_k, gated)
    if system == "dense_mlp":
        work, how = as_graph(torch, layer.mlp)
        measure(torch, rows, timer, layer, "none", "layer", work, how, layer.relative_error(layer.mlp(), None, None))
        return
    ids, gates = layer.select()
    stage = "expert_combine" if system == "pkm" else "experts"
    schedules = ["grouped_mm"] + ["loop"] * arguments.loop if layer.width else ["gather", "dense_masked"]
    for schedule in schedules:
        work = functools.partial(layer.experts, ids, gates, schedule)
        measure(torch, rows, timer, layer, schedule, stage, work, "eager", layer.relative_error(work(), ids, gates))
        work, how = functools.partial(layer.layer, schedule), "eager"
        if schedule != "loop":
            work, how = as_graph(torch, work)
        measure(torch, rows, timer, layer, schedule, "layer", work, how)
        del work
        torch.cuda.empty_cache()


def main():
    arguments = parse_arguments()
    try:
        import torch
    except ImportError:
        sys.exit("torch_systems: PyTorch is not installed; moescope itself does not need it, only these peers do")
    if not torch.cuda.is_available():
        sys.exit("torch_systems: PyTorch sees no CUDA device")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

    def gated(gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up

    if not arguments.eager:
        torch._dynamo.config.suppress_errors = True  # without a compiler at hand: eager
        gated = torch.compile(gated, dynamic=True)
    rows = torch_peers.Rows(arguments.out, torch)
    timer = torch_peers.Timer(torch, arguments.samples, arguments.l2)
    with torch.inference_mode():
        for system in arguments.systems:
            for num_tokens, top_k in points_of(arguments, system):
                try:
                    measure_point(torch, rows, timer, arguments, system, num_tokens, top_k, gated)
                except (RuntimeError, torch.cuda.OutOfMemoryError) as failure:
                    print(f"{system} L={num_tokens} K={top_k}: failed: {str(failure).splitlines()[0]}", flush=True)
                torch.cuda.empty_cache()
    if timer.discarded:
        print(f"{timer.discarded} samples dropped for low SM clocks", flush=True)


if __name__ == "__main__":
    main()
