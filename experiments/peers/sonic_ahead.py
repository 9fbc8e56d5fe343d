#!/usr/bin/env python3
"""SonicMoE's matrix products, compiled ahead of time where there is no GPU, for a machine where the compiler is not.

SonicMoE's own kernels are Triton's (permutation, sums of a token's results). Its two grouped products are QuACK's, in CuTe DSL, whose compiler is
a library of 144 MB. This script compiles them once, for compute capability 9.0, in every form that QuACK's own tuning tries:

  pip install nvidia-cutlass-dsl==4.4.2 quack-kernels==0.3.11 numpy    (Python 3.10 or later, gcc, the CUDA toolkit; neither PyTorch nor a GPU)
  python3 experiments/peers/sonic_ahead.py KERNELS [NAME...]

KERNELS then holds a shared library for each form (50 to 80 KB) and the few calls of CUDA's runtime that they make (sonic_runtime.c). It needs
apache-tvm-ffi where it is used, no CuTe DSL:

  pip install --no-deps sonic-moe==0.1.2.post1 apache-tvm-ffi
  python3 experiments/peers/sonic_systems.py --kernels KERNELS --out results/sonic_systems

There use() stands in for CuTe DSL and QuACK: SonicMoE runs as published, its calls of QuACK's gemm and gemm_gated reach the compiled forms. As QuACK
does, every form is timed once for each shape, and the fastest is kept.
"""

import importlib.abc
import importlib.machinery
import os
import pathlib
import subprocess
import sys
import time
import types

GATED, PLAIN = "gated", "plain"
RUNTIME = "libsonic_runtime.so"
CUDA = pathlib.Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))


def name_of(kind, config):
    order = "pingpong" if config.pingpong else "cooperative"
    return f"{kind}_{config.tile_m}x{config.tile_n}_{config.cluster_m}x{config.cluster_n}_{order}"


class Absent:
    """Stands for anything of a package that is not there: called, indexed, derived from, used as a decorator."""

    def __init__(self, *arguments, **named):
        pass

    def __call__(self, *arguments, **named):
        return self

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, item):
        return self

    def __or__(self, other):
        return self

    __ror__ = __or__

    def __mro_entries__(self, bases):
        return ()


class AbsentModule(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent()


class AbsentFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module of the packages named."""

    def __init__(self, packages):
        self.packages = packages

    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in self.packages else None

    def create_module(self, spec):
        return AbsentModule(spec.name)

    def exec_module(self, module):
        pass


def absent_torch():
    """What QuACK asks of PyTorch when it is imported: names of types."""
    torch = AbsentModule("torch")
    torch.Tensor = type("Tensor", (), {})
    torch.device = type("device", (), {})
    for name in ("float16", "bfloat16", "float32", "int32", "int64"):
        setattr(torch, name, name)
    return torch


def compile_forms(folder, names):
    """Writes KERNELS/*.so."""
    os.environ.update(QUACK_ARCH="sm_90", CUTE_DSL_ARCH="sm_90a", QUACK_CACHE_ENABLED="0")
    try:
        import torch  # noqa: F401
    except ImportError:
        sys.modules["torch"] = absent_torch()
        sys.meta_path.append(AbsentFinder(["torch", "triton"]))
    # QuACK's __init__ imports all it has; two of its modules are needed.
    spec = importlib.machinery.PathFinder.find_spec("quack")
    if spec is None:
        sys.exit("sonic_ahead: QuACK is not installed; pip install nvidia-cutlass-dsl==4.4.2 quack-kernels==0.3.11")
    quack = types.ModuleType("quack")
    quack.__path__ = list(spec.submodule_search_locations)
    sys.modules["quack"] = quack
    from cutlass import BFloat16
    from cutlass.base_dsl.compiler import Compiler
    from quack import gemm, gemm_act
    from quack.gemm_config import get_all_configs

    Compiler._check_cuda_dependencies_once = lambda compiler, libraries: None  # a driver, which compiling has no use for

    def gated(config):
        return gemm_act._compile_gemm_act(
            BFloat16, BFloat16, None, None, BFloat16, "k", "k", None, None, "n", (config.tile_m, config.tile_n),
            (config.cluster_m, config.cluster_n, 1), config.pingpong, True, False, "swiglu", None, None, 0, True, True, (), (9, 0), "gated")

    def plain(config):
        return gemm._compile_gemm(
            BFloat16, BFloat16, BFloat16, None, "k", "k", "n", None, (config.tile_m, config.tile_n), (config.cluster_m, config.cluster_n, 1),
            config.pingpong, True, False, None, None, 0, 0, 0, False, (), True, False, False, False, False, (9, 0), 0, 0, False)

    of_hopper = [c for c in get_all_configs("gated") if c.device_capacity == 9]
    forms = [(GATED, gated, c) for c in of_hopper if c.cluster_n == 1 and c.tile_n != 208]  # rows are gathered
    forms += [(PLAIN, plain, c) for c in get_all_configs() if c.device_capacity == 9 and not c.swap_ab]
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-s", f"-I{CUDA}/include", "-o", folder / RUNTIME, pathlib.Path(__file__).with_name("sonic_runtime.c"),
                    f"-L{CUDA}/lib64", "-lcudart"], check=True)
    for kind, make, config in forms:
        name = name_of(kind, config)
        if (folder / f"{name}.so").exists() or (names and name not in names):
            continue
        began = time.time()
        made = folder / f"{name}.o"
        try:
            make(config).export_to_c(object_file_path=str(made), function_name="func")
        except Exception as failure:  # QuACK's tuning leaves out what does not compile, too
            print(f"{name}: does not compile: {type(failure).__name__}: {str(failure).splitlines()[:1]}", flush=True)
            continue
        subprocess.run(["gcc", "-shared", "-s", "-Wl,-z,notext,--no-warnings", "-o", folder / f"{name}.so", made], check=True)
        made.unlink()
        print(f"{name}: {time.time() - began:.1f} s, {(folder / f'{name}.so').stat().st_size} bytes", flush=True)


class Forms:
    """The compiled forms of one product."""

    def __init__(self, torch, folder, kind, load):
        self.torch = torch
        self.forms = {path.stem: load(path) for path in sorted(folder.glob(f"{kind}_*.so"))}
        self.fastest, self.last = {}, ""  # by shape; what the last call took
        if not self.forms:
            sys.exit(f"sonic_ahead: {folder} holds no {kind}_*.so; sonic_ahead.py compiles them")
        self.multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count

    def run(self, name, tensors, epilogue, varlen):
        clusters = name.split("_")[2].split("x")
        scheduler = (self.multiprocessors // (int(clusters[0]) * int(clusters[1])), None, 8, None, None)
        self.forms[name](*tensors, epilogue, scheduler, varlen, None)

    def time_of(self, name, call):
        torch = self.torch
        try:
            for _ in range(2):
                self.run(name, *call)
            torch.cuda.synchronize()
        except Exception as failure:
            print(f"{name}: does not run: {str(failure).splitlines()[:1]}", flush=True)
            del self.forms[name]
            return float("inf")
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(5):
            self.run(name, *call)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def __call__(self, key, *call):
        if key not in self.fastest:
            times = {name: self.time_of(name, call) for name in list(self.forms)}
            self.fastest[key] = min(times, key=times.get)
        self.last = self.fastest[key]
        self.run(self.last, *call)


def use(torch, folder):
    """Lets `import sonicmoe` work with the forms in `folder` in place of CuTe DSL and QuACK. Returns the two products' Forms."""
    import ctypes

    import tvm_ffi

    for library in (folder / RUNTIME, pathlib.Path(tvm_ffi.__file__).parent / "lib" / "libtvm_ffi.so"):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)  # which the forms look their calls up in
    for package in ("cutlass", "quack"):
        if package in sys.modules:
            raise RuntimeError(f"{package} is imported already")

    def load(path):
        return tvm_ffi.load_module(str(path))["func"]

    gated, plain = Forms(torch, folder, GATED, load), Forms(torch, folder, PLAIN, load)

    def gemm_gated(x, weights, activation="swiglu", cu_seqlens_m=None, A_idx=None, preact_out=None, postact_out=None, store_preact=True, bias=None,
                   concat_layout=None):
        if activation != "swiglu" or store_preact or bias is not None or concat_layout or A_idx is None:
            raise RuntimeError("this form of gemm_gated is not compiled")
        b = weights.mT.permute(1, 2, 0)
        gated((tuple(postact_out.shape), tuple(b.shape)), (x, b, None, None), (postact_out, None, None, None, None, None, None, None),
              (cu_seqlens_m, None, A_idx))

    def gemm(a, weights, out=None, cu_seqlens_m=None, bias=None):
        if out is None or bias is not None or cu_seqlens_m is None:
            raise RuntimeError("this form of gemm is not compiled")
        b = weights.mT.permute(1, 2, 0)
        plain((tuple(out.shape), tuple(b.shape)), (a, b, out, None), (None, None, None, None, None, None, None), (cu_seqlens_m, None, None))

    sys.meta_path.insert(0, AbsentFinder(["cutlass", "quack"]))
    import quack.gemm_interface as interface

    interface.gemm, interface.gemm_gated = gemm, gemm_gated
    return gated, plain


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    compile_forms(pathlib.Path(sys.argv[1]), sys.argv[2:])
