"""Routing of any PyTorch model, as traces and snapshots that the program reads.

    from moescope import record
    with record.Recorder(model) as routing:                        # our modules are found by themselves
        model(x)
    routing.save_trace("routing.npz")                              # moescope inspect routing.npz
    print(routing.statistics())

    with record.Recorder(model, routers="*.mlp.gate", top_k=8) as routing:     # router modules of any other model, by name
        model(**tokens)
    record.from_router_logits(output.router_logits, top_k=8).save_trace("routing.npz")     # what transformers returns

A router module may return logits [..., N]; or a tuple that holds ids (integers, [..., K]) and gates of the same shape, or logits.
While a model runs nothing waits for the device: ids and gates stay there until they are saved or counted.
"""
from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Union

try:
    import numpy as np
    import torch
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(f"moescope.record needs PyTorch and NumPy: pip install torch numpy ({missing.name} is missing)",
                              name=missing.name) from None
from torch import Tensor, nn

PathLike = Union[str, "os.PathLike[str]"]
GATES = ("softmax", "probability", "sigmoid", "sigmoid_normalised")


class RecordError(ValueError):
    """Routing that cannot be recorded or written; the message names the layer."""


@dataclass
class LayerRouting:
    """What was recorded of one layer, on the device where it ran."""

    name: str
    system: str
    num_experts: int
    top_k: int  #: of a query
    grid_rows: int = 1
    grid_cols: int = 0
    heads: int = 1  #: queries a token
    gate_mode: str = ""
    hidden_size: int = 0
    ids: list[Tensor] = field(default_factory=list)  #: int32 [tokens * heads, K] a forward
    gates: list[Tensor] = field(default_factory=list)  #: float32, likewise
    hidden: list[Tensor] = field(default_factory=list)  #: [tokens, d], where they are kept
    counts: Optional[Tensor] = None  #: int64 [N] pairs of each expert, of every forward
    tokens: int = 0  #: kept
    tokens_seen: int = 0

    def add(self, ids: Tensor, gates: Optional[Tensor], hidden: Optional[Tensor], max_tokens: Optional[int]) -> None:
        """ids and gates [tokens * heads, K]. No synchronisation: extents are known, values stay on the device."""
        ids = ids.detach()
        if self.counts is None:
            self.counts = torch.zeros(self.num_experts, dtype=torch.int64, device=ids.device)
        flat = ids.reshape(-1).long()
        self.counts.scatter_add_(0, flat, torch.ones_like(flat))
        tokens = len(ids) // self.heads
        self.tokens_seen += tokens
        kept = tokens if max_tokens is None else min(tokens, max_tokens - self.tokens)
        if kept <= 0:
            return
        self.ids.append(ids[:kept * self.heads].to(torch.int32, copy=True))
        if gates is not None:
            self.gates.append(gates.detach()[:kept * self.heads].to(torch.float32, copy=True))
        if hidden is not None:
            self.hidden.append(hidden.detach()[:kept].clone())
        self.tokens += kept

    def all_ids(self) -> np.ndarray:
        """int32 [tokens * heads, K]."""
        return torch.cat(self.ids).cpu().numpy() if self.ids else np.empty((0, self.top_k), np.int32)

    def all_gates(self) -> np.ndarray:
        """float32 [tokens * heads, K]; of no token where the router gave none."""
        return torch.cat(self.gates).cpu().numpy() if self.gates else np.empty((0, self.top_k), np.float32)


class Recording:
    """Routing of one or more layers."""

    def __init__(self, source: str = ""):
        self.layers: dict[str, LayerRouting] = {}
        self.source = source

    def counts(self, name: str) -> Tensor:
        """int64 [N] pairs of each expert of a layer so far, on its device: reading it is what waits."""
        counts = self._layer(name).counts
        if counts is None:
            raise RecordError(f"{name}: no forward was recorded")
        return counts

    def _layer(self, name: str) -> LayerRouting:
        if name not in self.layers:
            raise RecordError(f"layer {name!r} is not one of {', '.join(self.layers) or 'none'}")
        return self.layers[name]

    def statistics(self) -> list[dict[str, Any]]:
        """Of every layer a dict: name, tokens, pairs, experts (N), used, max_over_mean (load of the busiest expert over the mean
        load), entropy (of the loads, over log N: 1 when even), gini (0 when even). pandas.DataFrame() takes the list."""
        made = []
        for layer in self.layers.values():
            if layer.counts is None:
                continue
            loads = np.sort(layer.counts.cpu().numpy().astype(float))
            pairs = loads.sum()
            shares = loads[loads > 0] / max(pairs, 1)
            ranks = np.arange(1, len(loads) + 1)
            made.append({
                "name": layer.name, "tokens": layer.tokens_seen, "pairs": int(pairs), "experts": layer.num_experts,
                "used": int((loads > 0).sum()), "max_over_mean": float(loads[-1] / (pairs / len(loads))) if pairs else 0.0,
                "entropy": float(-(shares * np.log(shares)).sum() / np.log(len(loads))) if len(loads) > 1 else 1.0,
                "gini": float(2 * (ranks * loads).sum() / (len(loads) * pairs) - (len(loads) + 1) / len(loads)) if pairs else 0.0})
        return made

    def save_trace(self, path: PathLike, layers: Optional[Sequence[str]] = None) -> None:
        """Writes a trace of the named layers (default: all), an .npz as docs/guide/import.md describes it. They must have the same
        tokens, K and experts; else name those that have."""
        if not os.fspath(path).endswith(".npz"):
            raise RecordError(f"path: {os.fspath(path)!r} must end in .npz")
        chosen = [self._layer(name) for name in layers] if layers is not None else list(self.layers.values())
        if not chosen or not chosen[0].tokens:
            raise RecordError("no routing was recorded")
        first = chosen[0]
        for one in chosen:
            for what in ("tokens", "top_k", "num_experts", "grid_rows", "grid_cols", "system", "heads"):
                if getattr(one, what) != getattr(first, what):
                    raise RecordError(f"{one.name}: {what} {getattr(one, what)} differs from {getattr(first, what)} of {first.name}; "
                                      "name the layers of a trace")
        ids = np.stack([one.all_ids() for one in chosen])
        ordered = np.argsort(ids, axis=-1, kind="stable")
        ids = np.take_along_axis(ids, ordered, axis=-1)
        twice = np.argwhere(ids[..., 1:] == ids[..., :-1])
        if len(twice):
            layer, row, _ = twice[0]
            raise RecordError(f"{chosen[layer].name}: token {row // first.heads} has an expert twice")
        numbers = list(self.layers)
        members: dict[str, Any] = {"expert_ids": ids.astype(np.int32), "layers": np.array([numbers.index(one.name) for one in chosen], np.int64),
                   "num_experts": np.int64(first.num_experts), "grid_rows": np.int64(first.grid_rows),
                   "grid_cols": np.int64(first.grid_cols), "heads": np.int64(first.heads), "system": np.array(first.system),
                   "source": np.array(self.source or "moescope.record")}
        gates = [one.all_gates() for one in chosen if one.gates]
        if len(gates) == len(chosen):
            members["gates"] = np.take_along_axis(np.stack(gates), ordered, axis=-1)
            if first.gate_mode:
                members["gate_mode"] = np.array(first.gate_mode)
        if first.hidden_size:
            members["hidden_size"] = np.int64(first.hidden_size)
        with open(os.fspath(path) + ".part", "wb") as stream:  # nothing half-written
            np.savez(stream, **members)
        os.replace(os.fspath(path) + ".part", path)


def _selected(logits: Tensor, top_k: int, gate_mode: str) -> tuple[Tensor, Tensor]:
    """ids and gates [rows, K] of logits [rows, N]."""
    logits = logits.detach().float()
    values, ids = torch.topk(logits, top_k, dim=-1)
    if gate_mode == "softmax":
        return ids, values.softmax(-1)
    if gate_mode == "probability":
        return ids, (values - logits.logsumexp(-1, keepdim=True)).exp()
    gates = values.sigmoid()
    return ids, gates if gate_mode == "sigmoid" else gates / gates.sum(-1, keepdim=True)


def _require(top_k: Optional[int], gate_mode: str, name: str, num_experts: int) -> int:
    if gate_mode not in GATES:
        raise RecordError(f"gate_mode: {gate_mode!r} is not one of {', '.join(GATES)}")
    if top_k is None:
        raise RecordError(f"{name}: gives logits, so top_k must say how many experts a token takes")
    if not 1 <= top_k <= num_experts:
        raise RecordError(f"{name}: top_k {top_k} must be in [1, {num_experts}]")
    return top_k


def from_router_logits(router_logits: Iterable[Tensor], top_k: int, *, gate_mode: str = "softmax", system: str = "gshard",
                       source: str = "") -> Recording:
    """Of what a transformers model returns for output_router_logits=True: a tensor [tokens, N] a layer; None where a layer has
    none. gate_mode: "softmax" over the selected, "probability", "sigmoid" or "sigmoid_normalised"."""
    made = Recording(source)
    for number, logits in enumerate(router_logits):
        name = f"layer{number}"
        if logits is None:
            continue
        if logits.dim() < 2:
            raise RecordError(f"{name}: logits {list(logits.shape)} must be [tokens, experts]")
        k = _require(top_k, gate_mode, name, logits.shape[-1])
        layer = LayerRouting(name, system, logits.shape[-1], k, grid_cols=logits.shape[-1], gate_mode=_trace_mode(gate_mode))
        layer.add(*_selected(logits.reshape(-1, logits.shape[-1]), k, gate_mode), None, None)
        made.layers[name] = layer
    return made


def _trace_mode(gate_mode: str) -> str:
    """As a trace may say it: others are gates without a mode."""
    return gate_mode if gate_mode in ("softmax", "probability") else ""


class Recorder(Recording):
    """Records while its `with` block runs.

    routers: names or patterns (fnmatch) of router modules of the model; without it, every module of moescope.torch is recorded.
    top_k, gate_mode: how routers that give logits select; num_experts: N of routers that give ids. max_tokens: of each layer so
    many are kept, and all are counted. keep_hidden: keep the layers' inputs too, for save_snapshot().
    """

    def __init__(self, model: nn.Module, routers: Union[str, Sequence[str], None] = None, *, top_k: Optional[int] = None,
                 num_experts: Optional[int] = None, gate_mode: str = "softmax", system: str = "gshard", max_tokens: Optional[int] = None,
                 keep_hidden: bool = False, source: str = ""):
        super().__init__(source or type(model).__name__)
        if max_tokens is not None and max_tokens < 1:
            raise RecordError(f"max_tokens: {max_tokens} must be at least 1")
        if gate_mode not in GATES:
            raise RecordError(f"gate_mode: {gate_mode!r} is not one of {', '.join(GATES)}")
        self._options = (top_k, num_experts, gate_mode, system)
        self._max_tokens, self._keep_hidden = max_tokens, keep_hidden
        self._removers: list = []
        patterns = [routers] if isinstance(routers, str) else routers
        if patterns is None:
            from moescope.torch.hooks import RoutingHooks
            self._modules: dict[str, Any] = {name or "model": one for name, one in model.named_modules() if isinstance(one, RoutingHooks)}
            if not self._modules:
                raise RecordError(f"{type(model).__name__} has no module of moescope.torch: name its routers, routers='*.gate'")
        else:
            self._modules = {}
            for pattern in patterns:
                found = {name: one for name, one in model.named_modules() if fnmatch.fnmatchcase(name, pattern)}
                if not found:
                    raise RecordError(f"routers: {pattern!r} is no module of {type(model).__name__}")
                self._modules.update(found)
        self._own = patterns is None

    def __enter__(self) -> "Recorder":
        for name, module in self._modules.items():
            if self._own:
                self._removers.append(module.register_routing_hook(self._own_hook(name, module)))
            else:
                self._removers.append(module.register_forward_hook(self._router_hook(name)).remove)
        return self

    def __exit__(self, *_: object) -> None:
        while self._removers:
            self._removers.pop()()

    def _own_hook(self, name: str, module: nn.Module):
        def hook(tokens: Tensor, ids: Tensor, gates: Tensor) -> None:
            layer = self.layers.get(name)
            if layer is None:
                layer = self.layers[name] = _of_module(name, module, tokens.shape[-1])
            layer.add(ids.reshape(-1, layer.top_k), gates.reshape(-1, layer.top_k), tokens if self._keep_hidden else None,
                      self._max_tokens)
        return hook

    def _router_hook(self, name: str):
        def hook(_: nn.Module, inputs: tuple, output: Any) -> None:
            ids, gates, count = self._read(name, output)
            hidden = inputs[0].reshape(-1, inputs[0].shape[-1]) if inputs and isinstance(inputs[0], Tensor) else None
            layer = self.layers.get(name)
            if layer is None:
                width = hidden.shape[-1] if hidden is not None else 0
                layer = self.layers[name] = LayerRouting(name, self._options[3], count, ids.shape[-1], grid_cols=count,
                                                         gate_mode=_trace_mode(self._options[2]), hidden_size=width)
            layer.add(ids, gates, hidden if self._keep_hidden else None, self._max_tokens)
        return hook

    def _read(self, name: str, output: Any) -> tuple[Tensor, Optional[Tensor], int]:
        """ids and gates [rows, K] and N of what a router module returned."""
        top_k, num_experts, gate_mode, _ = self._options
        parts = [one for one in (output if isinstance(output, (tuple, list)) else [output]) if isinstance(one, Tensor) and one.dim() >= 2]
        ids = next((one for one in parts if not one.is_floating_point() and one.dtype != torch.bool), None)
        if ids is not None:
            gates = next((one for one in parts if one.is_floating_point() and one.shape == ids.shape), None)
            wide = next((one for one in parts if one.is_floating_point() and one.shape[:-1] == ids.shape[:-1] and one is not gates), None)
            count = num_experts if num_experts is not None else wide.shape[-1] if wide is not None else None
            if count is None:
                raise RecordError(f"{name}: gives ids, so num_experts must say how many experts there are")
            k = ids.shape[-1]
            return ids.reshape(-1, k), None if gates is None else gates.reshape(-1, k), count
        logits = next((one for one in parts if one.is_floating_point()), None)
        if logits is None:
            raise RecordError(f"{name}: returned {type(output).__name__}, neither logits nor ids")
        k = _require(top_k, gate_mode, name, logits.shape[-1])
        return *_selected(logits.reshape(-1, logits.shape[-1]), k, gate_mode), logits.shape[-1]

    def save_snapshot(self, path: PathLike, name: Optional[str] = None) -> None:
        """Writes a snapshot of an OmniMoE, GShard or DeepSeekMoE layer (default: the only one): its weights as they are now and the
        tokens that it saw, safetensors as docs/guide/your-model.md describes it. OmniMoE's batch norm is folded in with its running
        averages."""
        from moescope.torch.modules import OmniMoE
        from moescope.torch.systems import GShard

        if name is None:
            if len(self.layers) != 1:
                raise RecordError(f"name: several layers were recorded: {', '.join(self.layers)}")
            name = next(iter(self.layers))
        layer = self._layer(name)
        module = self._modules.get(name)
        if not isinstance(module, (OmniMoE, GShard)):
            raise RecordError(f"{name}: {type(module).__name__} has no snapshot; save_trace() writes its routing")
        if not layer.hidden:
            raise RecordError(f"{name}: no hidden states were kept: Recorder(..., keep_hidden=True)")
        described = {"top_k": module.top_k, "activation": module.hidden_act, "gates": module.gates, "source": self.source}
        if isinstance(module, OmniMoE):
            described |= {"grid_rows": module.num_expert_sqrt, "grid_cols": module.num_expert_sqrt}
            tensors = _grid_snapshot(module)
        else:
            described["system"] = layer.system
            tensors = _ffn_snapshot(module)
        _write_safetensors(path, {"hidden_states": torch.cat(layer.hidden), **tensors}, described)


def _of_module(name: str, module: Any, hidden_size: int) -> LayerRouting:
    from moescope.torch import systems
    from moescope.torch.modules import OmniMoE

    if isinstance(module, OmniMoE):
        return LayerRouting(name, "omnimoe", module.num_experts, module.top_k, module.num_expert_sqrt, module.num_expert_sqrt,
                            gate_mode=module.gates, hidden_size=hidden_size)
    if isinstance(module, (systems.PEER, systems.PKM)):
        side = module.router.keys.shape[2]
        return LayerRouting(name, type(module).__name__.lower(), side * side, module.router.top_k // module.router.heads, side, side,
                            module.router.heads, module.router.gates, hidden_size)
    count = module.router.out_features
    return LayerRouting(name, type(module).__name__.lower(), count, module.top_k, 1, count, gate_mode=module.gates,
                        hidden_size=hidden_size)


def _folded(gate: Any, norm: Any) -> tuple[Tensor, Tensor]:
    weight = gate.weight.detach().double()
    if not isinstance(norm, nn.BatchNorm1d):
        return weight, weight.new_zeros(len(weight))
    if norm.running_var is None or norm.running_mean is None:
        raise RecordError("the router's batch norm keeps no running statistics, so that a snapshot of it would route otherwise")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    return weight * scale[:, None], -norm.running_mean.double() * scale


def _ffn_snapshot(module: Any) -> dict[str, Tensor]:
    made = {"router.weight": module.router.weight, "experts.gate_up": torch.cat([module.gate, module.up], dim=1),
            "experts.down": module.down}
    return made | _shared(module) if hasattr(module, "gate_proj") else made


def _shared(module: Any) -> dict[str, Tensor]:
    return {"shared.gate.weight": module.gate_proj.weight, "shared.up.weight": module.up_proj.weight,
            "shared.down.weight": module.down_proj.weight}


def _grid_snapshot(module: Any) -> dict[str, Tensor]:
    rows, row_bias = _folded(module.router_gate_x, module.router_norm_x)
    cols, col_bias = _folded(module.router_gate_y, module.router_norm_y)
    made = {"router.row.weight": rows, "router.col.weight": cols, "router.row.bias": row_bias,
            "router.col.bias": col_bias, "experts.w_in": module.up_embed.weight, "experts.w_out": module.down_embed.weight}
    return made | _shared(module) if module.intermediate_size > 0 else made


def _write_safetensors(path: PathLike, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """float32 arrays behind a JSON header, as the format has it; nothing half-written."""
    arrays = {name: np.ascontiguousarray(tensor.detach().to("cpu", torch.float32).numpy()) for name, tensor in tensors.items()}
    header: dict[str, Any] = {"__metadata__": {key: str(value) for key, value in metadata.items()}}
    offset = 0
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.fspath(path) + ".part", "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            stream.write(array.tobytes())
    os.replace(os.fspath(path) + ".part", path)
