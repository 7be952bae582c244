"""Optimizers of torch as those of fastbatch: their settings, and what they call their state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import ops
from ..errors import ArgumentError, unknown_name
from .modules import import_torch

__all__ = ["Rule"]

# Keywords that mean the same in both.
_ADAM = ("betas", "eps", "weight_decay", "amsgrad")
KEYWORDS: dict[str, tuple[str, ...]] = {
    "SGD": ("momentum", "dampening", "weight_decay", "nesterov"),
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "RMSprop": ("alpha", "eps", "weight_decay", "momentum", "centered"),
    "Adagrad": ("lr_decay", "eps", "weight_decay"),
    "NAdam": ("betas", "eps", "weight_decay", "momentum_decay", "decoupled_weight_decay"),
}
# What has to be off.
REFUSED = ("maximize", "capturable", "differentiable")

Group = Mapping[str, Any]


class Rule:
    """How an optimizer of torch is one of fastbatch.

    Attributes
    ----------
    name : str
        Of its class.
    scalars : tuple of str
        What its state of each parameter counts in.
    hooks : list of dict
        Where hooks of its steps would be, all of them empty.
    """

    def __init__(self, optimizer, caller: str) -> None:
        torch = import_torch()
        self.name = type(optimizer).__name__
        if self.name not in KEYWORDS or type(optimizer) is not getattr(torch.optim, self.name):
            raise unknown_name(f"{caller}: optimizer", self.name, KEYWORDS)
        self.hooks = []
        for kind in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
            self.hooks.append(getattr(optimizer, kind))
            if self.hooks[-1]:
                raise ArgumentError(
                    f"{caller}: the optimizer has {kind[11:].replace('_', ' ')}, which fused steps would not call"
                )
        self.scalars = {"SGD": (), "NAdam": ("step", "mu_product")}.get(self.name, ("step",))

    @property
    def counts(self) -> bool:
        """Whether torch counts updates for each parameter."""
        return "step" in self.scalars

    def slots(self, group: Group) -> tuple[str | None, ...]:
        """What torch calls the slots; None for one that it does without."""
        if self.name == "SGD":
            return ("momentum_buffer",) if group["momentum"] else ()
        if self.name == "RMSprop":
            momentum = "momentum_buffer" if group["momentum"] else None
            if group["centered"]:
                return "square_avg", momentum, "grad_avg"
            return ("square_avg", momentum) if momentum else ("square_avg",)
        if self.name == "Adagrad":
            return ("sum",)
        return ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group.get("amsgrad") else ()))

    def describe(
        self, groups: list[Group], members: list[list[str]], frozen: tuple[int | str, ...], shares: list[float]
    ) -> ops.Optimizer:
        """The optimizer of rate 1.

        `members` are the names of the tensors of each group, `frozen` those of tensors that nothing updates, `shares`
        the factors of the groups' rates.
        """
        found = []
        for i, group in enumerate(groups):
            for name in REFUSED:
                if group.get(name):
                    raise ArgumentError(f"fuse: {self.name}, group {i}: expected {name}=False, got {group[name]!r}")
            numbers = {name: group[name] for name in KEYWORDS[self.name]}
            if "betas" in numbers:
                numbers["betas"] = tuple(map(float, numbers["betas"]))
            found.append((numbers, self._class(group)))
        first, cls = found[0]
        own: dict[int | str, dict[str, Any]] = {}
        if any(other is not cls for _, other in found):
            raise ArgumentError(f"fuse: {self.name}: expected the same decoupled_weight_decay in all groups")
        if len(groups) > 1:
            for (numbers, _), share, names in zip(found, shares, members):
                differ = {name: value for name, value in numbers.items() if value != first[name]}
                own.update({name: {"lr_factor": share, **differ} for name in names})
        return cls(lr=1.0, **first, frozen=frozen, groups=own)

    def _class(self, group: Group) -> type[ops.Optimizer]:
        if self.name == "Adam" and group.get("decoupled_weight_decay"):
            return ops.OPTIMIZERS["adamw"]
        return ops.OPTIMIZERS[self.name.lower()]

    def momentum(self, group: Group, t: int) -> float:
        """NAdam's momentum of update `t`, counted from 1."""
        return group["betas"][0] * (1 - 0.5 * 0.96 ** (t * group["momentum_decay"]))
