"""The OmniMoE layer in PyTorch (2.4 or later): operators with autograd, fake kernels and compile, and modules to train.

    from moescope.torch import OmniMoE
    layer = OmniMoE(hidden_size=256, intermediate_size=512, num_experts=1024, num_experts_per_token=16)
    y = layer(x)                                    # x [..., 256]
    y, ids, gates = layer(x, return_routing=True)

    from moescope.torch import experts, layer, mlp, select           # the parts, as functions

On the CPU tensors are float32, float64 or bfloat16, on CUDA float32 or bfloat16. A library that was built without CUDA raises
MoescopeUnsupported for CUDA tensors. Operators are torch.ops.moescope.*; double backward raises.
"""
from __future__ import annotations

try:
    import torch as _torch
except ModuleNotFoundError:
    raise ModuleNotFoundError("moescope.torch needs PyTorch: pip install torch", name="torch") from None
if not hasattr(_torch.library, "register_autograd"):
    raise ImportError(f"moescope.torch needs PyTorch 2.4 or later, this is {_torch.__version__}")

from moescope.torch.functional import balance_loss, expert_bound, experts, layer, layer_output, mlp, select, z_loss
from moescope.torch.modules import OmniMoE
from moescope.torch.systems import PEER, PKM, DeepSeekMoE, GShard

__all__ = ["DeepSeekMoE", "GShard", "OmniMoE", "PEER", "PKM", "balance_loss", "expert_bound", "experts", "layer", "layer_output", "mlp",
           "select", "z_loss"]
