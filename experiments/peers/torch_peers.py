#!/usr/bin/env python3
"""What a researcher would write in PyTorch for an OmniMoE layer, timed on the same shapes as `moescope compare`.

PyTorch is no dependency of moescope: this script runs where torch with CUDA is installed and says so where it is not.
Its rows have moescope's result schema (core/results/result.schema.json) and `backend` "torch", so that they can stand beside
the rows of `moescope compare --backend cuda` from the same machine (torch_systems.py has the baseline systems):

  python3 experiments/peers/torch_peers.py --out results/peers                      # Table A points, own routing
  python3 experiments/peers/torch_peers.py --out results/peers --points 64,512 4096,512 --peers dense_masked gather

Both sides on the same routing:
  moescope inspect --preset table-a-4096-512 --workload gaussian:1 --save-trace routing.safetensors
  moescope compare --backend cuda --workload trace:routing.safetensors
  python3 experiments/peers/torch_peers.py --trace routing.safetensors --out results/peers

Peers (column `schedule`; expert stages get routing as given, as moescope's own `experts` stage does):
  dense_masked      experts        silu(X W^T) times the gates scattered into a dense [L, N], times V
  gather            experts        gathered rows of W, batched dot products, embedding_bag over V with weights
  topk_all_scores   router_select  log-softmax, all N sums, torch.topk, softmax gates, ids sorted
  topk_pruned       router_select  the same over sorted marginals, candidates (i + 1)(j + 1) <= K alone
  none              router_project, shared_mlp

Protocol: CUDA events, warm-up first, L2 emptied before each sample (--l2 warm: not), at least 10 samples; a sample
below 75 % of the maximum SM clock is dropped. time_s is the median, spread (max - min) / median. Large intermediates
are chunked over tokens to --max-bytes. Every expert peer is checked against fp64 on a few tokens (relative_error).
Without --trace, routing is gaussian:1-like: independent N(0, 1) row and column logits, selected as the layer does.
A trace is .npz or .safetensors with expert_ids int32 [L, K] and optional gates f32 [L, K] (softmax of nothing: 1/K).
"""

import argparse
import pathlib
import statistics
import subprocess
import sys

from row_writer import RowWriter

PEERS = ("dense_masked", "gather", "topk_all_scores", "topk_pruned", "router_project", "shared_mlp")
# Paper Table A: both sweeps, and a decoding-sized batch.
TABLE_A = ["64,512", "1024,512", "1024,1024", "1024,2048", "1024,4096", "2048,512", "4096,512", "8192,512", "16384,512"]
MIN_CLOCK_FRACTION = 0.75


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for rows.jsonl")
    parser.add_argument("--points", nargs="+", default=TABLE_A, metavar="L,K", help="batches and experts per token")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--grid", default="320x320", metavar="ROWSxCOLS")
    parser.add_argument("--shared-size", type=int, default=1024)
    parser.add_argument("--trace", type=pathlib.Path, help="recorded routing; replaces --points")
    parser.add_argument("--workload", help="name of the workload in rows (default: gaussian:1, or trace:FILE)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--samples", type=int, default=21)
    parser.add_argument("--l2", choices=("cold", "warm"), default="cold")
    parser.add_argument("--max-bytes", type=int, default=4 << 30, help="limit of one intermediate tensor")
    arguments = parser.parse_args()
    if arguments.samples < 10:
        parser.error("--samples: at least 10")
    return arguments


def query_nvidia_smi(field):
    """One field of nvidia-smi, or None."""
    try:
        done = subprocess.run(["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"],
                              capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


class Rows:
    """Rows of the peers on one GPU."""

    backend = "torch"

    def __init__(self, folder, torch, libraries=None):
        properties = torch.cuda.get_device_properties(0)
        clock = query_nvidia_smi("clocks.max.sm")
        machine = {"gpu_multiprocessors": properties.multi_processor_count, "gpu_memory_bytes": properties.total_memory}
        if clock and clock.isdigit():
            machine["sm_clock_max_hz"] = int(clock) * 1e6
        self.writer = RowWriter(folder, pathlib.Path(sys.argv[0]).stem, properties.name,
                                driver=query_nvidia_smi("driver_version") or "unavailable: nvidia-smi gave no answer",
                                libraries={"torch": torch.__version__, "cuda": str(torch.version.cuda), **(libraries or {})},
                                machine=machine)

    def row(self, point, schedule, stage, metric, unit, value, samples=1, spread=None, reason="", **more):
        self.writer.write(
            system=point.system, schedule=schedule, stage=stage, backend=self.backend, L=point.num_tokens, d=point.hidden_size,
            Nr=point.rows, Nc=point.cols, K=point.top_k, dtype="bf16", activation=point.activation, gates=point.gates_mode,
            workload=point.workload, seed=point.seed, l2_state=point.l2, metric=metric, value=value, unit=unit,
            samples=samples, spread=spread, reason=reason, **point.extents(), **more)


class Timer:
    """CUDA-event times with the L2 cache in a known state; samples at low clocks are dropped."""

    def __init__(self, torch, samples, l2):
        self.torch = torch
        self.samples = samples
        l2_bytes = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 50 << 20)
        self.flush = torch.empty(2 * l2_bytes, dtype=torch.uint8, device="cuda") if l2 == "cold" else None
        maximum = query_nvidia_smi("clocks.max.sm")
        self.min_clock_mhz = MIN_CLOCK_FRACTION * float(maximum) if maximum and maximum.isdigit() else 0
        self.discarded = 0

    def clock_mhz(self):
        try:
            return self.torch.cuda.clock_rate()
        except Exception:  # needs NVML's Python module, which not every installation has
            return None

    def times(self, work):
        torch = self.torch
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        for _ in range(3):
            work()
        kept = []
        for _ in range(3 * self.samples):
            if self.flush is not None:
                self.flush.fill_(0x5A)
            begin.record()
            work()
            end.record()
            torch.cuda.synchronize()
            clock = self.clock_mhz()
            if clock is not None and clock < self.min_clock_mhz:
                self.discarded += 1
                continue
            kept.append(begin.elapsed_time(end) * 1e-3)
            if len(kept) == self.samples:
                return kept
        raise RuntimeError(f"only {len(kept)} of {3 * self.samples} samples at 75 % of the SM clock or above")


class Point:
    """One shape with its inputs on the GPU. Weights are shared between points."""

    weights = None
    system, activation, gates_mode = "omnimoe", "silu", "softmax"

    def extents(self):
        """What rows say of the extents that not every system has."""
        return {"shared_size": self.shared_size}

    def __init__(self, torch, arguments, num_tokens, top_k, trace=None):
        self.num_tokens, self.top_k = num_tokens, top_k
        self.hidden_size, self.shared_size = arguments.hidden_size, arguments.shared_size
        self.rows, self.cols = (int(side) for side in arguments.grid.split("x"))
        self.num_experts = self.rows * self.cols
        self.seed, self.l2 = arguments.seed, arguments.l2
        self.workload = arguments.workload or (f"trace:{arguments.trace.name}" if trace else "gaussian:1")
        if not 1 <= top_k <= self.num_experts:
            raise ValueError(f"top_k = {top_k}: must be in [1, {self.num_experts}]")
        generator = torch.Generator(device="cuda").manual_seed(arguments.seed)

        def normal(*shape, scale=1.0):
            return (torch.randn(*shape, generator=generator, device="cuda") * scale).to(torch.bfloat16)

        d = self.hidden_size
        if Point.weights is None:
            scale = d**-0.5
            Point.weights = {
                "w_in": normal(self.num_experts, d, scale=scale), "w_out": normal(self.num_experts, d, scale=scale),
                "row": normal(self.rows, d, scale=scale), "col": normal(self.cols, d, scale=scale),
                "gate": normal(self.shared_size, d, scale=scale), "up": normal(self.shared_size, d, scale=scale),
                "down": normal(d, self.shared_size, scale=max(self.shared_size, 1)**-0.5),
            }
        self.x = normal(num_tokens, d)
        self.row_logits = torch.randn(num_tokens, self.rows, generator=generator, device="cuda")
        self.col_logits = torch.randn(num_tokens, self.cols, generator=generator, device="cuda")
        if trace is None:
            self.ids, self.gates = select_pruned(torch, self)
        else:
            self.ids = torch.as_tensor(trace[0], device="cuda").long()
            self.gates = torch.as_tensor(trace[1], device="cuda").float()
            if self.ids.min() < 0 or self.ids.max() >= self.num_experts:
                raise ValueError(f"expert_ids: outside [0, {self.num_experts}); does --grid fit the trace?")


def token_chunks(point, bytes_per_token, max_bytes):
    step = max(1, min(point.num_tokens, max_bytes // bytes_per_token))
    return [slice(first, min(first + step, point.num_tokens)) for first in range(0, point.num_tokens, step)]


def dense_masked(torch, point, max_bytes):
    w_in, w_out = Point.weights["w_in"], Point.weights["w_out"]
    outputs = []
    for tokens in token_chunks(point, 2 * point.num_experts, max_bytes):
        scores = torch.nn.functional.silu(point.x[tokens] @ w_in.T)
        gates = torch.zeros_like(scores)
        gates.scatter_(1, point.ids[tokens], point.gates[tokens].to(gates.dtype))
        outputs.append((scores * gates) @ w_out)
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def gather(torch, point, max_bytes):
    w_in, w_out = Point.weights["w_in"], Point.weights["w_out"]
    outputs = []
    for tokens in token_chunks(point, 2 * point.top_k * point.hidden_size, max_bytes):
        ids = point.ids[tokens]
        scores = torch.bmm(w_in[ids], point.x[tokens].unsqueeze(2)).squeeze(2)
        weights = torch.nn.functional.silu(scores) * point.gates[tokens].to(scores.dtype)
        outputs.append(torch.nn.functional.embedding_bag(ids, w_out, per_sample_weights=weights, mode="sum"))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def finish_selection(torch, scores, ids):
    gates = torch.softmax(scores, dim=1)
    ids, order = torch.sort(ids, dim=1)
    return ids, torch.gather(gates, 1, order)


def select_all_scores(torch, point, max_bytes):
    parts = []
    for tokens in token_chunks(point, 4 * point.num_experts, max_bytes):
        row = torch.log_softmax(point.row_logits[tokens], dim=1)
        col = torch.log_softmax(point.col_logits[tokens], dim=1)
        scores, ids = (row.unsqueeze(2) + col.unsqueeze(1)).flatten(1).topk(point.top_k, dim=1)
        parts.append(finish_selection(torch, scores, ids))
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def pruned_candidates(torch, point):
    """0-based ranks (i, j) that can be among the K largest sums: (i + 1)(j + 1) <= K."""
    i = torch.arange(min(point.rows, point.top_k), device="cuda").unsqueeze(1)
    j = torch.arange(min(point.cols, point.top_k), device="cuda").unsqueeze(0)
    return torch.nonzero((i + 1) * (j + 1) <= point.top_k, as_tuple=True)


def select_pruned(torch, point, candidates=None):
    i, j = candidates or pruned_candidates(torch, point)
    row, row_ids = torch.sort(torch.log_softmax(point.row_logits, dim=1), dim=1, descending=True)
    col, col_ids = torch.sort(torch.log_softmax(point.col_logits, dim=1), dim=1, descending=True)
    scores, best = (row[:, i] + col[:, j]).topk(point.top_k, dim=1)
    ids = torch.gather(row_ids, 1, i[best]) * point.cols + torch.gather(col_ids, 1, j[best])
    return finish_selection(torch, scores, ids)


def router_project(torch, point):
    return point.x @ Point.weights["row"].T, point.x @ Point.weights["col"].T


def shared_mlp(torch, point):
    weights = Point.weights
    hidden = torch.nn.functional.silu(point.x @ weights["gate"].T) * (point.x @ weights["up"].T)
    return hidden @ weights["down"].T


def relative_error(torch, point, y):
    """Against fp64 on three tokens; NaN does not pass: it stays NaN, which no row may hold."""
    tokens = sorted({0, point.num_tokens // 2, point.num_tokens - 1})
    reference = []
    for token in tokens:
        ids = point.ids[token]
        scores = Point.weights["w_in"][ids].double() @ point.x[token].double()
        p = torch.nn.functional.silu(scores) * point.gates[token].double()
        reference.append(p @ Point.weights["w_out"][ids].double())
    reference = torch.stack(reference)
    return ((y[tokens].double() - reference).norm() / reference.norm()).item()


def work_of(torch, point, peer, max_bytes):
    """(schedule, stage, what to time)."""
    if peer == "dense_masked":
        return peer, "experts", lambda: dense_masked(torch, point, max_bytes)
    if peer == "gather":
        return peer, "experts", lambda: gather(torch, point, max_bytes)
    if peer == "topk_all_scores":
        return peer, "router_select", lambda: select_all_scores(torch, point, max_bytes)
    if peer == "topk_pruned":
        candidates = pruned_candidates(torch, point)
        return peer, "router_select", lambda: select_pruned(torch, point, candidates)
    if peer == "router_project":
        return "none", peer, lambda: router_project(torch, point)
    return "none", "shared_mlp", lambda: shared_mlp(torch, point)


def measure(torch, rows, timer, point, peer, max_bytes):
    schedule, stage, work = work_of(torch, point, peer, max_bytes)
    label = f"L={point.num_tokens} K={point.top_k} {schedule}/{stage}"
    try:
        error = relative_error(torch, point, work()) if stage == "experts" else None
        times = timer.times(work)
    except (RuntimeError, torch.cuda.OutOfMemoryError) as failure:
        reason = str(failure).splitlines()[0]
        rows.row(point, schedule, stage, "time_s", "s", None, samples=0, reason=reason)
        print(f"{label}: failed: {reason}", flush=True)
        return
    median = statistics.median(times)
    for metric, value in (("time_s", median), ("time_min_s", min(times)), ("time_max_s", max(times))):
        rows.row(point, schedule, stage, metric, "s", value, len(times),
                 (max(times) - min(times)) / median if metric == "time_s" else None)
    if error is not None:
        finite = error == error and error != float("inf")
        rows.row(point, schedule, stage, "relative_error", "fraction", error if finite else None,
                 samples=1 if finite else 0, reason="" if finite else "output is not finite")
    print(f"{label}: {median * 1e3:.4f} ms ({min(times) * 1e3:.4f} to {max(times) * 1e3:.4f}, n = {len(times)})"
          + (f", relative error {error:.2e}" if error is not None else ""), flush=True)


def read_trace(path):
    """(expert_ids [L, K], gates [L, K]) as numpy arrays."""
    import numpy

    if path.suffix == ".npz":
        with numpy.load(path) as members:
            tensors = {name: members[name] for name in members.files}
    elif path.suffix == ".safetensors":
        try:
            from safetensors.numpy import load_file
        except ImportError:
            sys.exit(f"torch_peers: {path}: reading safetensors needs the Python package safetensors; give an .npz")
        tensors = load_file(path)
    else:
        sys.exit(f"torch_peers: {path}: must be .npz or .safetensors")
    if "expert_ids" not in tensors or tensors["expert_ids"].ndim != 2:
        sys.exit(f"torch_peers: {path}: expert_ids: must be there, with shape [L, K]")
    ids = tensors["expert_ids"]
    gates = tensors.get("gates")
    if gates is None:
        gates = numpy.full(ids.shape, 1.0 / ids.shape[1], dtype=numpy.float32)
    if gates.shape != ids.shape:
        sys.exit(f"torch_peers: {path}: gates: shape {list(gates.shape)}, expert_ids has {list(ids.shape)}")
    return ids.astype(numpy.int64), gates


def main():
    arguments = parse_arguments()
    try:
        import torch
    except ImportError:
        sys.exit("torch_peers: PyTorch is not installed; moescope itself does not need it, only these peers do")
    if not torch.cuda.is_available():
        sys.exit("torch_peers: PyTorch sees no CUDA device")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    trace = read_trace(arguments.trace) if arguments.trace else None
    points = [tuple(trace[0].shape)] if trace else [tuple(int(n) for n in p.split(",")) for p in arguments.points]
    peers = [p for p in arguments.peers if trace is None or not p.startswith("topk_")]
    rows = Rows(arguments.out, torch)
    timer = Timer(torch, arguments.samples, arguments.l2)
    with torch.inference_mode():
        for num_tokens, top_k in points:
            point = Point(torch, arguments, num_tokens, top_k, trace)
            for peer in peers:
                measure(torch, rows, timer, point, peer, arguments.max_bytes)
                torch.cuda.empty_cache()
            del point
    if timer.discarded:
        print(f"{timer.discarded} samples dropped for low SM clocks", flush=True)


if __name__ == "__main__":
    main()
