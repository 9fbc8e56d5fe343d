"""The published package's own operators (HKUSTDial/omni-moe), from a checkout of it, for what times them beside ours.

Its kernels are tuned when they are first called: 64 to 108 configurations each, compiled one after the other. load() has each
of them measured for milliseconds instead of a hundred; warm() compiles them beforehand, side by side. Both leave what is chosen
from, and how it is compiled, as it was published.

  python3 experiments/peers/published_op.py --published omni-moe      # compiles into Triton's cache
"""
import argparse
import functools
import os
import pathlib
import subprocess
import sys


def load(folder):
    """Its module omni_moe.ops.triton, of a checkout in `folder`. Raises ImportError where something it needs is missing."""
    sys.path.insert(0, str(pathlib.Path(folder).resolve()))
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")
    import triton.testing

    if not isinstance(triton.testing.do_bench, functools.partial):
        triton.testing.do_bench = functools.partial(triton.testing.do_bench, warmup=1, rep=4)
    import omni_moe.ops.triton as published

    return published


def _compile_part(folder, part, parts):
    """Calls every function once, with every `parts`-th configuration."""
    import torch

    published = load(folder)
    from omni_moe.ops.triton import omni_expert, omni_router
    from triton.runtime.autotuner import Autotuner

    for module in (omni_expert, omni_router):
        for kernel in vars(module).values():
            if isinstance(kernel, Autotuner):
                kernel.configs = kernel.configs[part::parts] or kernel.configs[:1]
    made = torch.Generator(device="cuda").manual_seed(part)
    normal = lambda *shape: torch.randn(*shape, generator=made, device="cuda").to(torch.bfloat16)  # noqa: E731
    calls = []
    ids = torch.randint(0, 1024, (1024, 32), dtype=torch.int32, device="cuda")
    expert = [normal(1024, 1024).requires_grad_(), normal(1024, 1024).requires_grad_(), normal(1024, 1024).requires_grad_(),
              normal(1024, 32).requires_grad_(), ids]
    calls.append(("expert", lambda: published.triton_omni_expert_func(*expert).sum().backward()))
    for side, top_k in ((64, 16), (64, 32), (128, 16), (128, 32), (256, 16), (256, 32)):
        logits = [normal(1024, side).requires_grad_() for _ in range(2)]
        calls.append((f"router {side} {top_k}",
                      lambda logits=logits, side=side, top_k=top_k: published.triton_omni_router_func(*logits, side, top_k)[0].sum().backward()))
    for name, call in calls:
        try:
            call()
            torch.cuda.synchronize()
        except Exception as failure:  # what does not compile does not keep the rest from it
            print(f"{name}: {type(failure).__name__}: {str(failure).splitlines()[0][:200] if str(failure) else ''}", flush=True)


def warm(folder, parts, timeout_s):
    """Compiles in `parts` processes; what is not done in time is compiled when it is called."""
    command = [sys.executable, __file__, "--published", str(folder), "--parts", str(parts), "--part"]
    running = [subprocess.Popen([*command, str(part)], env={**os.environ, "TRITON_CACHE_AUTOTUNING": "0"}) for part in range(parts)]
    for one in running:
        try:
            one.wait(timeout_s)
        except subprocess.TimeoutExpired:
            timeout_s = 0
            one.kill()
            one.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", required=True, type=pathlib.Path, help="checkout of the published repository")
    parser.add_argument("--parts", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--part", type=int)
    parser.add_argument("--timeout", type=float, default=120, help="seconds for all")
    given = parser.parse_args()
    if given.part is None:
        warm(given.published, given.parts, given.timeout)
    else:
        _compile_part(given.published, given.part, given.parts)


if __name__ == "__main__":
    main()
