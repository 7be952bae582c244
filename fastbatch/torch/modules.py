"""Modules of torch as models, and models as modules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from .. import checks
from ..errors import ArgumentError, BackendError, DTypeError, ShapeError
from ..layers import Activation, BatchNorm, Dense, Dropout, Layer, LayerNorm
from ..model import Sequential, model_parts
from ..ops import built_in_activation

__all__ = ["Found", "from_torch", "import_torch", "model_of", "named", "read", "to_torch"]

# Name here, class and settings there.
ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "identity": ("Identity", {}),
    "relu": ("ReLU", {}),
    "leaky_relu": ("LeakyReLU", {"negative_slope": 0.01}),
    "elu": ("ELU", {"alpha": 1.0}),
    "tanh": ("Tanh", {}),
    "sigmoid": ("Sigmoid", {}),
    "softplus": ("Softplus", {"beta": 1.0, "threshold": 20.0}),
    "gelu": ("GELU", {"approximate": "none"}),
    "gelu_tanh": ("GELU", {"approximate": "tanh"}),
    "silu": ("SiLU", {}),
}

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = tuple(f"_global{name}" for name in HOOKS)

HINTS = {
    "Softmax": "; CrossEntropyLoss takes the outputs before it",
    "LogSoftmax": "; CrossEntropyLoss takes the outputs before it, NLLLoss those behind it",
    "LazyLinear": "; run the module once, so that it knows its widths",
}


def import_torch() -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise BackendError(f"fastbatch.torch needs torch: pip install 'fastbatch[torch]' ({error})") from error
    return torch


def named(path: str) -> str:
    """How messages call the submodule or parameter at `path`."""
    return f"module.{path}" if path else "module"


@dataclass
class Found:
    """What a module consists of.

    Attributes
    ----------
    layers : list of Layer
    tensors : dict of str to (str, dict, str)
        By the name that files of models give a tensor: its path in the module, and the dict and key under which its
        submodule holds it. What is not learnt (``affine=False``) is missing.
    batches : list of (str, dict, str)
        The num_batches_tracked of every BatchNorm1d, likewise.
    modal : list of (str, Module)
        What works in another way in eval().
    flattens : bool
        Whether inputs of more than two dimensions are flattened.
    hooks : list of dict
        Where hooks would be, all of them empty.
    chains : list of dict
        The parts and attributes of every Sequential.
    settings : list of dict
        Attributes of all other parts, settings among them.
    """

    layers: list[Layer] = field(default_factory=list)
    tensors: dict[str, tuple[str, dict[str, Any], str]] = field(default_factory=dict)
    batches: list[tuple[str, dict[str, Any], str]] = field(default_factory=list)
    modal: list[tuple[str, Any]] = field(default_factory=list)
    flattens: bool = False
    hooks: list[dict[int, Any]] = field(default_factory=list)
    chains: list[dict[str, Any]] = field(default_factory=list)
    settings: list[dict[str, Any]] = field(default_factory=list)
    input_size: int = 0
    dtype: str = ""


def from_torch(module) -> Sequential:
    """The model that computes what `module` does, with copies of its weights and running statistics.

    Parameters
    ----------
    module : torch.nn.Module
        nn.Sequential, also of others, of Linear, the activations that fastbatch has, Dropout, LayerNorm, BatchNorm1d,
        Identity, and Flatten of inputs, which :meth:`Sequential.predict` then expects flat; in float32 or float64.

    Returns
    -------
    Sequential

    Raises
    ------
    ArgumentError, DTypeError, BackendError, ShapeError
        For what fastbatch does not have; names the submodule by its path, and the reason.
    """
    return model_of(read(module, "from_torch"))


def model_of(found: Found) -> Sequential:
    torch = import_torch()
    model = Sequential(found.layers, input_size=found.input_size, dtype=found.dtype)
    for name, array in model_parts(model)[0].items():
        if name in found.tensors:
            _, home, key = found.tensors[name]
            torch.from_numpy(array.T).copy_(home[key].detach())
    return model


def read(module, caller: str) -> Found:
    """What `module` consists of, where fastbatch has all of it."""
    torch = import_torch()
    if not isinstance(module, torch.nn.Module):
        raise ArgumentError(f"{caller}: expected a torch.nn.Module, got {type(module).__name__}")
    found, dense, norms = Found(), 0, 0
    seen: dict[int, str] = {}
    _take_hooks(torch.nn.modules.module, GLOBAL_HOOKS, found, f"{caller}: torch.nn.Module")
    for path, part in _leaves(torch, module, "", found, caller):
        where = f"{caller}: {named(path)}"
        layer, width = _layer(torch, part, where)
        _take_hooks(part, HOOKS, found, f"{where} ({type(part).__name__})")
        found.settings.append(vars(part))
        if width is not None:
            if not found.input_size:
                found.input_size = checks.count(f"{where}: inputs", width)
            elif width != found_width(found):
                raise ShapeError(f"{where}: expected {found_width(found)} inputs, got {part}")
        elif isinstance(part, torch.nn.Flatten) and not found.input_size:
            found.flattens = True
        if layer is None:
            continue
        found.layers.append(layer)
        if isinstance(layer, (Dropout, BatchNorm)):
            found.modal.append((path, part))
        if isinstance(layer, Dense):
            names = {f"{dense}.w": "weight", f"{dense}.b": "bias"}
            dense += 1
        elif isinstance(layer, (LayerNorm, BatchNorm)):
            names = {f"norm{norms}.gamma": "weight", f"norm{norms}.beta": "bias"}
            if isinstance(layer, BatchNorm):
                names.update({f"norm{norms}.mean": "running_mean", f"norm{norms}.var": "running_var"})
                found.batches.append((f"{path}.num_batches_tracked", part._buffers, "num_batches_tracked"))
            norms += 1
        else:
            continue
        for name, key in names.items():
            home = part._buffers if key.startswith("running") else part._parameters
            tensor = home.get(key)
            if tensor is None:
                continue
            inside = f"{path}.{key}" if path else key
            _check(torch, tensor, found, f"{caller}: {named(inside)}")
            other = seen.setdefault(tensor.data_ptr(), inside)
            if other != inside and tensor.numel():
                raise ArgumentError(f"{caller}: {named(inside)} is shared with {named(other)}: not supported")
            found.tensors[name] = inside, home, key
    if not dense:
        raise ArgumentError(f"{caller}: expected at least one Linear in the module, got none")
    return found


def found_width(found: Found) -> int:
    """Outputs of the layers so far."""
    return next((layer.units for layer in reversed(found.layers) if isinstance(layer, Dense)), found.input_size)


def _leaves(torch: ModuleType, module, path: str, found: Found, caller: str) -> Iterator[tuple[str, Any]]:
    nn, kind = torch.nn, type(module)
    where = f"{caller}: {named(path)} ({kind.__name__})"
    chain = isinstance(module, nn.Sequential)
    if chain and (kind.forward, kind.__call__) == (nn.Sequential.forward, nn.Module.__call__):  # subclasses, too
        found.chains += [module._modules, vars(module)]
    elif kind.__module__.split(".")[0] != "torch" or chain or next(module.children(), None) is not None:
        raise ArgumentError(
            f"{where}: expected torch's own layers in nn.Sequential, got a class whose forward may do "
            f"anything{_inside(nn, module, path)}"
        )
    if "forward" in vars(module):
        raise ArgumentError(f"{where} has a forward of its own, which fastbatch would not call")
    if not chain:
        yield path, module
        return
    _take_hooks(module, HOOKS, found, where)
    for name, child in module._modules.items():
        yield from _leaves(torch, child, f"{path}.{name}" if path else name, found, caller)


def _inside(nn: Any, module, path: str) -> str:
    """Where a module that fastbatch may know lies in one that it does not."""
    wrapped = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
    name = wrapped.get(type(module).__name__)
    if name is None:
        name = next((name for name, child in module.named_children() if isinstance(child, nn.Sequential)), None)
    return "" if name is None else f"; {named(f'{path}.{name}' if path else name)} could be given instead"


def _take_hooks(module, kinds: tuple[str, ...], found: Found, where: str) -> None:
    for kind in kinds:
        hooks = getattr(module, kind)
        if hooks:
            raise ArgumentError(f"{where} has {kind[1:].replace('_', ' ')}, which fastbatch would not call")
        found.hooks.append(hooks)


def _layer(torch: ModuleType, part, where: str) -> tuple[Layer | None, int | None]:
    """The layer that does what `part` does, None for nothing; and the inputs it asks for, None for any number."""
    nn, kind = torch.nn, type(part)
    if kind is nn.Linear:
        return Dense(part.out_features, bias=part.bias is not None), part.in_features
    if kind is nn.Dropout:
        if part.p >= 1:
            raise ArgumentError(f"{where}: expected p < 1, got {part}")
        return (Dropout(part.p) if part.p else None), None
    if kind is nn.LayerNorm:
        if len(part.normalized_shape) != 1:
            raise ArgumentError(f"{where}: expected a norm over the last dimension alone, got {part}")
        return LayerNorm(part.eps), part.normalized_shape[0]
    if kind is nn.BatchNorm1d:
        if part.momentum is None or not 0 < part.momentum <= 1 or part.running_mean is None:
            raise ArgumentError(f"{where}: expected running statistics with a momentum in (0, 1], got {part}")
        return BatchNorm(part.eps, part.momentum), part.num_features
    if kind is nn.Flatten:
        if part.start_dim != 1 or part.end_dim != -1:
            raise ArgumentError(f"{where}: expected Flatten(start_dim=1, end_dim=-1), got {part}")
        return None, None
    if kind is nn.Identity:
        return None, None
    rows = [(name, settings) for name, (other, settings) in ACTIVATIONS.items() if kind is getattr(nn, other)]
    for name, settings in rows:
        if all(getattr(part, key) == value for key, value in settings.items()):
            return Activation(name), None
    if rows:
        raise ArgumentError(f"{where}: expected {' or '.join(str(settings) for _, settings in rows)}, got {part}")
    known = ("Linear", "Dropout", "LayerNorm", "BatchNorm1d", "Flatten", *{other for other, _ in ACTIVATIONS.values()})
    raise ArgumentError(
        f"{where}: expected one of {', '.join(sorted(known))}; got {kind.__name__}{HINTS.get(kind.__name__, '')}"
    )


def _check(torch: ModuleType, tensor, found: Found, where: str) -> None:
    if tensor.device.type != "cpu":
        raise BackendError(f"{where}: expected a tensor on the CPU, got one on {tensor.device}; fastbatch trains there")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in checks.DTYPES:
        raise DTypeError(f"{where}: expected float32 or float64, got {dtype}")
    if found.dtype and dtype != found.dtype:
        raise DTypeError(f"{where}: expected {found.dtype} as the tensors before, got {dtype}")
    found.dtype = dtype


def to_torch(model: Sequential):
    """The module that computes what `model` does, with copies of its weights and running statistics.

    Parameters
    ----------
    model : Sequential

    Returns
    -------
    torch.nn.Sequential
        In training mode, as new modules are.

    Raises
    ------
    ArgumentError
        For what torch does not have: ghost batches, and activations of your own.
    """
    torch = import_torch()
    if not isinstance(model, Sequential):
        raise ArgumentError(f"to_torch: expected a fastbatch Sequential, got {type(model).__name__}")
    nn, dtype, width = torch.nn, getattr(torch, model.dtype), model.input_size
    parts: list[Any] = []
    for k, layer in enumerate(model.layers):
        where = f"to_torch: layer {k}, {layer}"
        if isinstance(layer, Dense):
            # without the random numbers that its constructor would draw
            parts.append(nn.utils.skip_init(nn.Linear, width, layer.units, bias=layer.bias, dtype=dtype))
            width = layer.units
            if layer.activation != "identity":
                parts.append(_activation(nn, layer.activation, where))
        elif isinstance(layer, Activation):
            parts.append(_activation(nn, layer.name, where))
        elif isinstance(layer, Dropout):
            parts.append(nn.Dropout(layer.rate))
        elif isinstance(layer, LayerNorm):
            parts.append(nn.LayerNorm(width, eps=layer.eps, dtype=dtype))
        elif isinstance(layer, BatchNorm):
            if layer.ghost_size is not None:
                raise ArgumentError(f"{where}: torch has no ghost batches")
            parts.append(nn.BatchNorm1d(width, eps=layer.eps, momentum=layer.momentum, dtype=dtype))
    module = nn.Sequential(*parts)
    tensors = read(module, "to_torch").tensors
    for name, array in model_parts(model)[0].items():
        _, home, key = tensors[name]
        home[key].detach().copy_(torch.from_numpy(array.T))
    return module


def _activation(nn: Any, name: str, where: str):
    built_in_activation(name, where)
    if name not in ACTIVATIONS:
        raise ArgumentError(f"{where}: torch has no {name}")
    other, settings = ACTIVATIONS[name]
    return getattr(nn, other)(**settings)
