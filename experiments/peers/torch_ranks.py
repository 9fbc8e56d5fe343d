#!/usr/bin/env python3
"""What a researcher would write with torch.distributed for an OmniMoE layer on several GPUs, beside
`moescope compare --backend cuda --ranks P`; and NCCL's collectives alone, by size.

One process a GPU, started by this script. Rows have moescope's schema; their `schedule` says what experts run, `placement`
where they lie and `exchange` what travels:

  python3 experiments/peers/torch_ranks.py --out results/ranks                       # all GPUs, 64 to 16384 tokens on each
  python3 experiments/peers/torch_ranks.py --out results/ranks --tokens 1024 4096 --forms gather_pruned collectives

Forms of the layer (router, selection, experts as dense masked products in cuBLAS, shared MLP); a home keeps its tokens:
  replicated      every GPU has all experts; nothing travels
  gather          experts in equal rows of the grid; all-gather of X, all N scores everywhere, reduce-scatter of fp32 sums
  gather_pruned   the same with a selection by sorted marginals, bf16 sums: what a competent user writes
  all_to_all      selection at home; X, ids and gates of the pairs to every rank by all-to-all, bf16 sums back
  weights         experts are gathered, tokens stay
  collectives     all-gather and reduce-scatter of X, and all-to-all of sums, alone

Times: CUDA events behind a barrier on the device, L2 emptied before each sample, the slowest rank of each sample, median.
Each form is run eagerly and, where it can be captured, in a CUDA graph: the faster one counts. Outputs are held against
the replicated form's (relative_error).
"""

import argparse
import os
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from torch_systems import as_graph  # noqa: E402

FORMS = ("replicated", "gather", "gather_pruned", "all_to_all", "weights", "collectives")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for rows.jsonl")
    parser.add_argument("--tokens", nargs="+", type=int, default=[64, 1024, 4096, 16384], help="on each GPU")
    parser.add_argument("--top-k", type=int, default=512)
    parser.add_argument("--grid", default="320x320", metavar="ROWSxCOLS")
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--shared-size", type=int, default=1024)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--ranks", type=int, help="default: all GPUs")
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--max-bytes", type=int, default=4 << 30, help="limit of one intermediate tensor")
    arguments = parser.parse_args()
    if arguments.samples < 10:
        parser.error("--samples: at least 10")
    return arguments


class Layer:
    """One rank's weights and tokens, and the forms of the layer over them."""

    def __init__(self, torch, dist, arguments, num_tokens):
        self.torch, self.dist, self.max_bytes = torch, dist, arguments.max_bytes
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.rows, self.cols = (int(side) for side in arguments.grid.split("x"))
        self.num_tokens, self.top_k, d = num_tokens, arguments.top_k, arguments.hidden_size
        self.experts = self.rows * self.cols
        if self.experts % self.ranks:
            raise SystemExit(f"torch_ranks: {self.experts} experts on {self.ranks} ranks: must be a multiple")
        same = torch.Generator(device="cuda").manual_seed(1)
        own = torch.Generator(device="cuda").manual_seed(100 + self.rank)

        def normal(*shape, scale, generator):
            return (torch.randn(*shape, generator=generator, device="cuda") * scale).to(torch.bfloat16)

        self.w_in = normal(self.experts, d, scale=d**-0.5, generator=same)
        self.w_out = normal(self.experts, d, scale=d**-0.5, generator=same)
        # Logits of N(0, 1), as gaussian:1 has them: rows of X have the norm sqrt(d).
        self.row = normal(self.rows, d, scale=d**-0.5, generator=same)
        self.col = normal(self.cols, d, scale=d**-0.5, generator=same)
        h = arguments.shared_size
        self.gate = normal(h, d, scale=d**-0.5, generator=same)
        self.up = normal(h, d, scale=d**-0.5, generator=same)
        self.down = normal(d, h, scale=max(h, 1)**-0.5, generator=same)
        self.x = normal(num_tokens, d, scale=1.0, generator=own)
        share = self.experts // self.ranks
        self.first, self.end = self.rank * share, (self.rank + 1) * share
        i = torch.arange(min(self.rows, self.top_k), device="cuda").unsqueeze(1)
        j = torch.arange(min(self.cols, self.top_k), device="cuda").unsqueeze(0)
        self.candidates = torch.nonzero((i + 1) * (j + 1) <= self.top_k, as_tuple=True)

    def select(self, x, pruned):
        torch = self.torch
        row = torch.log_softmax((x @ self.row.T).float(), dim=1)
        col = torch.log_softmax((x @ self.col.T).float(), dim=1)
        if not pruned:
            parts = []
            step = max(1, self.max_bytes // (4 * self.experts))
            for t in range(0, x.shape[0], step):
                scores = (row[t:t + step].unsqueeze(2) + col[t:t + step].unsqueeze(1)).flatten(1)
                parts.append(scores.topk(self.top_k, dim=1))
            scores, ids = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
        else:
            i, j = self.candidates
            row, row_ids = torch.sort(row, dim=1, descending=True)
            col, col_ids = torch.sort(col, dim=1, descending=True)
            scores, best = (row[:, i] + col[:, j]).topk(self.top_k, dim=1)
            ids = torch.gather(row_ids, 1, i[best]) * self.cols + torch.gather(col_ids, 1, j[best])
        return ids, torch.softmax(scores, dim=1)

    def masked(self, x, ids, gates, first, end, w_in, w_out):
        """Of the pairs with experts first to end."""
        torch, width = self.torch, end - first
        outputs = []
        step = max(1, self.max_bytes // (2 * width))
        for t in range(0, x.shape[0], step):
            scores = torch.nn.functional.silu(x[t:t + step] @ w_in.T)
            local = ids[t:t + step] - first
            inside = (local >= 0) & (local < width)
            weights = torch.zeros_like(scores)
            weights.scatter_add_(1, torch.where(inside, local, 0), torch.where(inside, gates[t:t + step], 0.0).to(scores.dtype))
            outputs.append((scores * weights) @ w_out)
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def shared(self):
        hidden = self.torch.nn.functional.silu(self.x @ self.gate.T) * (self.x @ self.up.T)
        return hidden @ self.down.T

    def replicated(self):
        ids, gates = self.select(self.x, True)
        return self.masked(self.x, ids, gates, 0, self.experts, self.w_in, self.w_out) + self.shared()

    def gathered(self, pruned, dtype):
        everybody = self.x.new_empty(self.ranks * self.num_tokens, self.x.shape[1])
        self.dist.all_gather_into_tensor(everybody, self.x)
        ids, gates = self.select(everybody, pruned)
        part = self.masked(everybody, ids, gates, self.first, self.end, self.w_in[self.first:self.end],
                           self.w_out[self.first:self.end]).to(dtype)
        y = part.new_empty(self.num_tokens, part.shape[1])
        self.dist.reduce_scatter_tensor(y, part)
        return y.to(self.x.dtype) + self.shared()

    def gather(self):
        return self.gathered(False, self.torch.float32)

    def gather_pruned(self):
        return self.gathered(True, self.torch.bfloat16)

    def all_to_all(self):
        torch, dist = self.torch, self.dist
        ids, gates = self.select(self.x, True)

        def everywhere(tensor):  # K of 102,400 experts touch every rank: all tokens go to all
            sent = tensor.unsqueeze(0).expand(self.ranks, *tensor.shape).contiguous()
            got = torch.empty_like(sent)
            dist.all_to_all_single(got, sent)
            return got.flatten(0, 1)

        part = self.masked(everywhere(self.x), everywhere(ids), everywhere(gates), self.first, self.end,
                           self.w_in[self.first:self.end], self.w_out[self.first:self.end])
        back = torch.empty_like(part)
        dist.all_to_all_single(back, part)
        return back.view(self.ranks, self.num_tokens, -1).float().sum(0).to(self.x.dtype) + self.shared()

    def weights(self):
        whole = []
        for matrix in (self.w_in, self.w_out):
            gathered = self.torch.empty_like(matrix)
            self.dist.all_gather_into_tensor(gathered, matrix[self.first:self.end])
            whole.append(gathered)
        ids, gates = self.select(self.x, True)
        return self.masked(self.x, ids, gates, 0, self.experts, *whole) + self.shared()


class Timer:
    """The slowest rank's seconds of a piece of work that all ranks do together."""

    def __init__(self, torch, dist, samples):
        self.torch, self.dist, self.samples = torch, dist, samples
        l2_bytes = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 50 << 20)
        self.flush = torch.empty(2 * l2_bytes, dtype=torch.uint8, device="cuda")
        self.token = torch.zeros(1, device="cuda")

    def times(self, work):
        torch, dist = self.torch, self.dist
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for _ in range(3):
            work()
        kept = []
        for _ in range(self.samples):
            self.flush.fill_(0x5A)
            dist.all_reduce(self.token)  # all begin together
            begin.record()
            work()
            end.record()
            torch.cuda.synchronize()
            slowest = torch.tensor([begin.elapsed_time(end) * 1e-3], device="cuda")
            dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
            kept.append(slowest.item())
        return kept


def collectives(torch, dist, layer):
    ranks, x = layer.ranks, layer.x
    everybody = x.new_empty(ranks * x.shape[0], x.shape[1])
    back = torch.empty_like(everybody)
    single = torch.empty_like(x)
    return {"nccl_all_gather": lambda: dist.all_gather_into_tensor(everybody, x),
            "nccl_reduce_scatter": lambda: dist.reduce_scatter_tensor(single, everybody),
            "nccl_all_to_all": lambda: dist.all_to_all_single(back, everybody)}


def measure(torch, dist, arguments, rows):
    timer = Timer(torch, dist, arguments.samples)
    for num_tokens in arguments.tokens:
        layer = Layer(torch, dist, arguments, num_tokens)
        reference = layer.replicated().double()
        jobs = {form: getattr(layer, form) for form in arguments.forms if form != "collectives"}
        if "collectives" in arguments.forms:
            jobs.update(collectives(torch, dist, layer))
        for name, work in jobs.items():
            error = None
            if hasattr(layer, name) and name in FORMS:
                y = work().double()
                error = ((y - reference).norm() / reference.norm()).item()
                del y
            times, form = timer.times(work), "eager"
            replay, how = as_graph(torch, work)
            if replay is not work:
                again = timer.times(replay)
                if statistics.median(again) < statistics.median(times):
                    times, form = again, how
            del replay
            torch.cuda.empty_cache()
            if rows is not None:
                report(rows, arguments, layer, name, times, form, error)
        del layer, reference, jobs
        torch.cuda.empty_cache()


def report(rows, arguments, layer, name, times, form, error):
    alone = name not in FORMS
    median = statistics.median(times)
    common = dict(
        system="omnimoe", schedule="none" if alone else "dense_masked", stage="token_dispatch" if alone else "layer",
        backend="torch", L=layer.num_tokens * layer.ranks, d=layer.x.shape[1], Nr=layer.rows, Nc=layer.cols, K=layer.top_k,
        dtype="bf16", activation="silu", gates="softmax", workload="gaussian:1", l2_state="cold", ranks=layer.ranks,
        placement="none" if alone or name == "replicated" else "linear", shared_size=arguments.shared_size,
        exchange="dispatch" if name == "all_to_all" else "none" if alone or name == "replicated" else "gather",
        reason=f"{name}, {form}")
    rows.write(metric="time_s", value=median, unit="s", samples=len(times), spread=(max(times) - min(times)) / median, **common)
    if error is not None:
        rows.write(metric="relative_error", value=error, unit="fraction", **common)
    print(f"{layer.num_tokens:6d} tokens a GPU  {name:15s} {median * 1e6:9.1f} us  {form}"
          + ("" if error is None else f"  difference from replicated {error:.1e}"), flush=True)


def work(rank, ranks, arguments, port):
    import torch
    import torch.distributed as dist

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), NCCL_NVLS_ENABLE="0",
                      TORCH_SYMM_MEM_DISABLE_MULTICAST="1")
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=ranks, device_id=torch.device("cuda", rank))
    rows = None
    if rank == 0:
        from torch_peers import Rows
        rows = Rows(arguments.out, torch, {"nccl": ".".join(map(str, torch.cuda.nccl.version()))}).writer
    with torch.inference_mode():
        measure(torch, dist, arguments, rows)
    dist.destroy_process_group()


def main():
    arguments = parse_arguments()
    try:
        import torch
        import torch.multiprocessing as multiprocessing
    except ImportError:
        sys.exit("torch_ranks: PyTorch is not installed; moescope itself does not need it, only these peers do")
    ranks = arguments.ranks or torch.cuda.device_count()
    if ranks < 2 or ranks > torch.cuda.device_count():
        sys.exit(f"torch_ranks: {ranks} ranks: needs 2 GPUs or more, a process each; PyTorch sees {torch.cuda.device_count()}")
    import socket
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(work, args=(ranks, arguments, port), nprocs=ranks, join=True)


if __name__ == "__main__":
    main()
