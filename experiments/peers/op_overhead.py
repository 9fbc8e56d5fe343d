#!/usr/bin/env python3
"""What a call of our PyTorch operators costs beside its kernels; its forward, step and memory beside the program's, plain PyTorch's and the
published operator's.

  PYTHONPATH=python python3 experiments/peers/op_overhead.py --out results/op
  PYTHONPATH=python python3 experiments/peers/op_overhead.py --out results/op --steps --program build/cuda/experiments/moescope \
      --published omni-moe

Rows have moescope's result schema. Column `backend`: moescope.torch for the operators, torch for plain PyTorch, cuda for the program,
triton for the published operator (--published: a checkout of HKUSTDial/omni-moe).
  host_time_s     of one call on the CPU, on a layer so small that the GPU keeps up; schedule says of what: select, experts, layer;
                  layer_output. Behind it: `c`, the library's function with all that it needs at hand, what every caller pays; `operator`,
                  torch.ops.moescope's; `function`, moescope.torch's under no_grad; `training`, the function with autograd recorded;
                  `step`, its backward too; `python`, the function where PyTorch gives C no tensors (before 2.10), and `python training`
  time_s          of the layer's forward without the router's product, by CUDA events: called (schedule `call`; `output` without ids and
                  gates), replayed as a CUDA graph (`graph`; `frozen` with the experts' bound known), dense_masked
                  (torch_peers.py; the experts alone). The program's: its layer less its router_project.
                  `compiled` is dense_masked by torch.compile, `published` the published operator on the same pairs
  time_s of `... step`  (`exact step`: with exact_memory; `... step graph` as a CUDA graph) forward and backward by autograd (direction backward), where the dense one's score matrix fits --max-bytes; ours
                  begin at the logits, the others at the pairs and their gates
  step_bytes      of the same: most memory at once beyond inputs and gradients
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch_peers

CALLS = 40  # in a row, so few that the queue of launches never fills


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for rows.jsonl")
    parser.add_argument("--points", nargs="+", default=["64,512", "256,512", "1024,512", "4096,512", "16384,512"], metavar="L,K")
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--grid", default="320x320", metavar="ROWSxCOLS")
    parser.add_argument("--shared-size", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--samples", type=int, default=21)
    parser.add_argument("--l2", choices=("cold", "warm"), default="cold")
    parser.add_argument("--max-bytes", type=int, default=4 << 30)
    parser.add_argument("--steps", action="store_true", help="time forward and backward too")
    parser.add_argument("--program", help="moescope built with CUDA, to be run on the same points")
    parser.add_argument("--published", type=pathlib.Path, help="checkout of the published repository, to be timed too")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which takes half a minute")
    arguments = parser.parse_args()
    arguments.workload, arguments.trace = None, None
    return arguments


def host_time(torch, call, repeats):
    """Median of the seconds a call takes on the CPU: of `repeats` times CALLS calls."""
    for _ in range(CALLS):
        call()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - begin) / CALLS)
        torch.cuda.synchronize()
    return times


class Small:
    """A layer of next to no work, as torch_peers.Rows writes points."""

    system, activation, gates_mode, workload, l2, seed = "omnimoe", "silu", "softmax", "gaussian:1", "warm", 1
    num_tokens, hidden_size, rows, cols, top_k, shared_size = 4, 64, 8, 8, 4, 0

    def extents(self):
        return {"shared_size": self.shared_size}


def at_hand(torch, operation, options, tensors, call, outputs):
    """The library's function behind `call`, with structs, workspace and outputs made beforehand."""
    from moescope.torch import _calls

    call()
    plan, addresses = _calls.planned(operation, options, tensors)
    workspace = torch.empty(plan.size + 1, dtype=torch.uint8, device="cuda")
    where = plan.where
    where.workspace, where.workspace_bytes, where.stream = workspace.data_ptr(), plan.size, torch.cuda.current_stream().cuda_stream
    arguments = (plan.shape_reference, plan.where_reference, *addresses, *(one.data_ptr() for one in outputs))
    kept = (tensors, outputs, workspace)

    def again():
        where.workspace = kept[2].data_ptr()  # the same struct serves calls between
        plan.function(*arguments)

    return again


def overheads(torch, mt, rows, samples):
    from moescope.torch._calls import quick

    point = Small()
    made = torch.Generator(device="cuda").manual_seed(1)
    normal = lambda *shape, dtype=torch.bfloat16: torch.randn(*shape, generator=made, device="cuda").to(dtype)  # noqa: E731
    x, w_in, w_out = normal(4, 64), normal(64, 64), normal(64, 64)
    a, b = normal(4, 8, dtype=torch.float32), normal(4, 8, dtype=torch.float32)
    ids, gates, _ = mt.select(a, b, 4)
    learnt = [one.clone().requires_grad_() for one in (x, a, b, w_in, w_out)]
    ones = torch.ones_like(x)
    ops = torch.ops.moescope
    grad = torch.autograd.grad
    layer = (x, a, b, w_in, w_out, None, None, None)
    learnt_layer, learnt_pairs = [*learnt, None, None, None], (learnt[0], learnt[3], learnt[4], ids, gates)
    silu = (4, "softmax", "silu")
    calls = {
        "torch.add operator": lambda: torch.add(x, x),  # what a call of PyTorch's own costs
        "select c": at_hand(torch, "select_forward", (4, "softmax", "log_softmax"), (a, b), lambda: mt.select(a, b, 4),
                            (ids.int(), gates, gates.clone())),
        "select operator": lambda: ops.select(a, b, 4, "softmax", "log_softmax"),
        "select function": lambda: mt.select(a, b, 4),
        "experts c": at_hand(torch, "experts_forward", "silu", (x, w_in, w_out, ids, gates), lambda: mt.experts(x, w_in, w_out, ids, gates),
                             (torch.empty_like(x),)),
        "experts operator": lambda: ops.experts(x, w_in, w_out, ids, gates, "silu"),
        "experts function": lambda: mt.experts(x, w_in, w_out, ids, gates),
        "experts training": lambda: mt.experts(*learnt_pairs),
        "experts step": lambda: grad(mt.experts(*learnt_pairs), learnt_pairs[:3], ones),
        "layer operator": lambda: ops.layer(*layer, *silu),
        "layer function": lambda: mt.layer(x, a, b, w_in, w_out, 4),
        "layer training": lambda: mt.layer(*learnt, 4),
        "layer training operator": lambda: ops.layer(*learnt_layer, *silu),
        "layer step": lambda: grad(mt.layer(*learnt, 4).y, learnt, ones),
        "layer_output function": lambda: mt.layer_output(x, a, b, w_in, w_out, 4),
        "layer_output training": lambda: mt.layer_output(*learnt, 4),
        "layer_output step": lambda: grad(mt.layer_output(*learnt, 4), learnt, ones),
        "experts python": lambda: mt.experts(x, w_in, w_out, ids, gates),
        "experts python training": lambda: mt.experts(*learnt_pairs),
        "layer_output python": lambda: mt.layer_output(x, a, b, w_in, w_out, 4),
        "layer_output python training": lambda: mt.layer_output(*learnt, 4),
        "torch.add training": lambda: torch.add(learnt[0], x),
        "torch.add step": lambda: grad(torch.add(learnt[0], x), learnt[:1], ones),
    }
    for name, call in calls.items():
        call()  # what is learnt of a call is learnt now
        quick.enable("python" not in name)
        with torch.set_grad_enabled("training" in name or "step" in name):
            times = host_time(torch, call, samples)
        quick.enable(True)
        median = statistics.median(times)
        stage = {"experts": "experts", "select": "router_select"}.get(name.split()[0], "layer")
        rows.row(point, name, stage, "host_time_s", "s", median, len(times), (max(times) - min(times)) / median)
        print(f"{name}: {median * 1e6:.1f} us a call on the CPU ({min(times) * 1e6:.1f} to {max(times) * 1e6:.1f})", flush=True)


def timed(rows, timer, point, schedule, stage, work, direction="forward"):
    try:
        times = timer.times(work)
    except Exception as failure:  # of PyTorch, its compiler or the published operator: what else there is to time is timed
        reason = " ".join(f"{type(failure).__name__}: {failure}".split())[:300]
        rows.row(point, schedule, stage, "time_s", "s", None, samples=0, reason=reason, direction=direction)
        print(f"L={point.num_tokens} {schedule}: failed: {reason}", flush=True)
        return None
    median = statistics.median(times)
    rows.row(point, schedule, stage, "time_s", "s", median, len(times), (max(times) - min(times)) / median, direction=direction)
    print(f"L={point.num_tokens} K={point.top_k} {rows.backend} {schedule}: {median * 1e3:.4f} ms", flush=True)
    return median


def graph_of(torch, work):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def point_times(torch, mt, rows, timer, point, arguments):
    weights = torch_peers.Point.weights
    shared = (weights["gate"], weights["up"], weights["down"]) if arguments.shared_size else None
    inputs = (point.x, point.row_logits, point.col_logits, weights["w_in"], weights["w_out"], point.top_k)
    bound = mt.expert_bound(weights["w_in"], weights["w_out"])
    work = lambda: mt.layer(*inputs, shared=shared)  # noqa: E731
    without = lambda: mt.layer_output(*inputs, shared=shared)  # noqa: E731
    frozen = lambda: mt.layer_output(*inputs, shared=shared, expert_bound=bound)  # noqa: E731
    rows.backend = "moescope.torch"
    made = work()
    point.ids, point.gates = made.ids.long(), made.gates
    error = torch_peers.relative_error(torch, point, made.y) if shared is None else None
    if error is not None:
        finite = error == error
        rows.row(point, "call", "layer", "relative_error", "fraction", error if finite else None, reason="" if finite else "not finite")
        print(f"L={point.num_tokens} relative error {error:.2e}", flush=True)
    timed(rows, timer, point, "call", "layer", work)
    timed(rows, timer, point, "output", "layer", without)
    for name, each in (("graph", work), ("output graph", without), ("frozen graph", frozen)):
        graph = graph_of(torch, each)
        timed(rows, timer, point, name, "layer", graph.replay)
        del graph
    rows.backend = "torch"
    timed(rows, timer, point, "dense_masked", "experts", lambda: torch_peers.dense_masked(torch, point, arguments.max_bytes))
    fits = 2 * point.num_tokens * point.num_experts <= arguments.max_bytes
    if fits and arguments.compiled is not None:
        ids, gates = point.ids, point.gates.to(torch.bfloat16)
        with torch.no_grad():
            timed(rows, timer, point, "compiled", "experts",
                  lambda: arguments.compiled(point.x, weights["w_in"], weights["w_out"], ids, gates))
    if arguments.steps:
        steps(torch, mt, rows, timer, point, arguments, fits)


def dense_of(torch):
    """All experts for every token behind a mask of gates: what autograd and torch.compile are given."""
    silu = torch.nn.functional.silu

    def dense_layer(x, w_in, w_out, ids, gates):
        hidden = silu(x @ w_in.T)
        return (torch.zeros_like(hidden).scatter(1, ids, gates) * hidden) @ w_out

    return dense_layer


def step_bytes(torch, work):
    """Most that a step has allocated at once, without the gradients that it returns."""
    work()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    made = work()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    return max(0, peak - sum(one.numel() * one.element_size() for one in made))


def step_rows(torch, rows, timer, point, name, stage, work):
    if timed(rows, timer, point, name, stage, work, "backward") is None:
        return
    extra = step_bytes(torch, work)
    rows.row(point, name, stage, "step_bytes", "bytes", extra, direction="backward")
    print(f"L={point.num_tokens} K={point.top_k} {rows.backend} {name}: {extra / 2**20:.0f} MiB beyond inputs and gradients", flush=True)


def steps(torch, mt, rows, timer, point, arguments, fits):
    weights = torch_peers.Point.weights
    learnt = [one.clone().requires_grad_() for one in (point.x, point.row_logits, point.col_logits, weights["w_in"], weights["w_out"])]
    direction = torch.ones_like(point.x)
    x, _, _, w_in, w_out = learnt
    gates = point.gates.clone().requires_grad_()
    grad = torch.autograd.grad
    rows.backend = "moescope.torch"
    step_rows(torch, rows, timer, point, "output step", "layer", lambda: grad(mt.layer_output(*learnt, point.top_k), learnt, direction))
    step_rows(torch, rows, timer, point, "exact step", "layer",
              lambda: grad(mt.layer_output(*learnt, point.top_k, exact_memory=True), learnt, direction))
    graph = graph_of(torch, lambda: grad(mt.layer_output(*learnt, point.top_k), learnt, direction))
    timed(rows, timer, point, "output step graph", "layer", graph.replay, "backward")
    del graph
    step_rows(torch, rows, timer, point, "step", "layer", lambda: grad(mt.layer(*learnt, point.top_k).y, learnt, direction))
    learnt_pairs = (x, w_in, w_out, gates)
    step_rows(torch, rows, timer, point, "experts step", "experts",
              lambda: grad(mt.experts(x, w_in, w_out, point.ids, gates), learnt_pairs, direction))
    if fits:
        rows.backend = "torch"
        step_rows(torch, rows, timer, point, "dense_masked step", "experts",
                  lambda: grad(arguments.dense(x, w_in, w_out, point.ids, gates.to(x.dtype)), learnt_pairs, direction))
        if arguments.compiled is not None:
            step_rows(torch, rows, timer, point, "compiled step", "experts",
                      lambda: grad(arguments.compiled(x, w_in, w_out, point.ids, gates.to(x.dtype)), learnt_pairs, direction))


def published_times(torch, published, rows, timer, point, arguments):
    """The published operator on the same pairs. Last of all: its failures may leave the device in no state to go on."""
    weights = torch_peers.Point.weights
    rows.backend = "triton"
    x, w_in, w_out = (one.clone().requires_grad_() for one in (point.x, weights["w_in"], weights["w_out"]))
    gates, ids = point.gates.to(torch.bfloat16).requires_grad_(), point.ids.int()
    call = published.triton_omni_expert_func
    with torch.no_grad():
        found = timed(rows, timer, point, "published", "experts", lambda: call(x, w_in, w_out, gates, ids))
    if found is not None and arguments.steps:
        direction = torch.ones_like(point.x)
        learnt = (x, w_in, w_out, gates)
        step_rows(torch, rows, timer, point, "published step", "experts",
                  lambda: torch.autograd.grad(call(x, w_in, w_out, gates, ids), learnt, direction))


def program_times(rows, point, arguments):
    """The program's layer less its router_project, by its own protocol."""
    with tempfile.TemporaryDirectory() as folder:
        command = [arguments.program, "run", "--backend", "cuda", "--schedule", "auto", "--workload", "gaussian:1", "-L", str(point.num_tokens),
                   "-d", str(point.hidden_size), "--grid", f"{point.rows}x{point.cols}", "-K", str(point.top_k),
                   "--shared-size", str(point.shared_size),
                   "--l2", point.l2, "--min-samples", "10", "--max-time", "0.3", "--quiet", "--output", folder + "/rows"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            print(f"L={point.num_tokens}: the program: {done.stderr.strip().splitlines()[-1:]}", flush=True)
            return
        found = [json.loads(line) for line in (pathlib.Path(folder) / "rows" / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    stage = {row["stage"]: row for row in found if row.get("metric") == "time_s"}
    if "layer" not in stage:
        print(f"L={point.num_tokens}: the program's rows have no layer", flush=True)
        return
    seconds = stage["layer"]["value"] - stage["router_project"]["value"]
    rows.backend = "cuda"
    rows.row(point, stage["layer"]["schedule"], "layer", "time_s", "s", seconds, stage["layer"]["samples"])
    print(f"L={point.num_tokens} K={point.top_k} program {stage['layer']['schedule']}: {seconds * 1e3:.4f} ms", flush=True)


def main():
    arguments = parse_arguments()
    try:
        import torch
    except ImportError:
        sys.exit("op_overhead: PyTorch is not installed")
    if not torch.cuda.is_available():
        sys.exit("op_overhead: PyTorch sees no CUDA device")
    import moescope
    import moescope.torch as mt
    if not moescope.supports_cuda():
        sys.exit("op_overhead: this libmoescope has no kernels for CUDA")
    libraries = {"moescope": moescope.library_version()}
    arguments.dense = dense_of(torch)
    arguments.compiled = None if arguments.no_compile else torch.compile(arguments.dense, dynamic=True)
    if arguments.published:
        import triton

        libraries["triton"] = triton.__version__
    rows = torch_peers.Rows(arguments.out, torch, libraries)
    rows.backend = "moescope.torch"
    overheads(torch, mt, rows, arguments.samples)
    timer = torch_peers.Timer(torch, arguments.samples, arguments.l2)
    for text in arguments.points:
        tokens, top_k = map(int, text.split(","))
        point = torch_peers.Point(torch, arguments, tokens, top_k)
        if arguments.program:
            program_times(rows, point, arguments)
        point_times(torch, mt, rows, timer, point, arguments)
        torch.cuda.empty_cache()
    if arguments.published:
        import published_op

        published = published_op.load(arguments.published)
        for text in arguments.points:
            tokens, top_k = map(int, text.split(","))
            published_times(torch, published, rows, timer, torch_peers.Point(torch, arguments, tokens, top_k), arguments)


if __name__ == "__main__":
    main()
