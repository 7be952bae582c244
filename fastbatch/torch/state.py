"""The optimizer's state of a fused step: it lies in the trainer's slots, and torch has views of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ArgumentError
from ..training import Trainer
from .modules import named
from .optimizers import Rule

__all__ = ["LentState"]

Array = np.ndarray


class LentState:
    """Base of :class:`FusedStep`, which makes all of this."""

    optimizer: Any  # torch's
    trainer: Trainer
    _torch: Any
    _rule: Rule
    _slots: tuple[str | None, ...]  # torch's names of them
    _tensors_of_model: dict[str, Array]
    _paths: dict[str, str]  # of the model's tensors in the module
    _active: list[tuple[str, Any, int]]  # of the parameters that are trained the name, the tensor, the group
    _batches: Array
    _scalar: type
    _steps: Array
    _views: dict[tuple[str, int], Any]  # of slots, by name of the tensor and number
    _group_of: list[int]
    _counts: Array
    _products: Array | None
    _counted: int
    _counts_more: bool
    _unborn: bool

    def _slots_now(self) -> tuple[str | None, ...]:
        return self._rule.slots(self.optimizer.param_groups[0])

    def _take_state(self) -> None:
        """Let the optimizer's state lie in the trainer's slots, with the values that it has now."""
        state, rule, groups = self.optimizer.state, self._rule, self.optimizer.param_groups
        slots = self._slots
        wanted = [key for key in slots if key is not None] or list(rule.scalars)
        entries = [state.get(p) or {} for _, p, _ in self._active]
        born = [any(entry.get(key) is not None for key in wanted) for entry in entries]
        trainer = self.trainer
        if any(born) and not all(born):
            name = next(name for (name, _, _), there in zip(self._active, born) if not there)
            if rule.counts or any(group["dampening"] for group in groups):
                raise ArgumentError(
                    f"step: {named(self._paths[name])} begins at update 0, and others have state already: "
                    f"{rule.name} counts updates by parameter and fastbatch for all of them; a new optimizer does"
                )
        if not any(born):
            if wanted:
                trainer.slots[:] = 0
                self._steps[0] = 0
        else:
            self._read_state(entries, slots, groups)
        self._group_of = [i for _, _, i in self._active]
        self._counts = np.full(max(len(self._active), 1), self._steps.item(), self._scalar)
        self._products = None
        if "mu_product" in rule.scalars:
            products = [entry["mu_product"].item() if there else 1.0 for entry, there in zip(entries, born)]
            self._products = np.array(products, self._scalar)
        self._counted = self._steps.item()
        self._unborn = bool(wanted) and not any(born)
        self._counts_more = self._products is not None or self._batches.size > 0
        if any(born):
            self._lend_state()

    def _read_state(self, entries: list[dict], slots: tuple[str | None, ...], groups: list[dict]) -> None:
        """Copy torch's state of the active parameters, where there is some, into slots and `steps`."""
        counts = {
            entry["step"].item() if hasattr(entry["step"], "item") else entry["step"]
            for entry in entries
            if "step" in entry
        }
        if len(counts) > 1:
            raise ArgumentError(
                f"step: expected parameters that have been updated as often as each other, got {sorted(counts)} "
                f"updates: {self._rule.name} counts them by parameter and fastbatch for all of them"
            )
        t = int(counts.pop()) if counts else max(self._steps.item(), 1)
        if self._rule.name == "NAdam":
            self._check_products(entries, groups, t)
        found = []
        for (name, p, _), entry in zip(self._active, entries):
            for number, key in enumerate(slots):
                value = None if key is None else entry.get(key)
                if value is None:
                    value = self._torch.zeros(())
                elif value.shape != p.shape:
                    raise ArgumentError(
                        f"step: optimizer.state, {key} of {named(self._paths[name])}: expected shape {tuple(p.shape)}, "
                        f"got {tuple(value.shape)}"
                    )
                found.append((self._slot(name, number), value.clone()))  # it may lie where another one belongs
        for view, value in found:
            view.copy_(value)
        self._steps[0] = t

    def _check_products(self, entries: list[dict], groups: list[dict], t: int) -> None:
        for entry, (name, _, i) in zip(entries, self._active):
            expected = np.prod([self._rule.momentum(groups[i], k) for k in range(1, t + 1)])
            got = entry["mu_product"].item()
            if abs(got - expected) > 1e-3 * expected + 1e-30:
                raise ArgumentError(
                    f"step: optimizer.state, mu_product of {named(self._paths[name])}: expected {expected:.6g} as {t} "
                    f"updates with the present betas and momentum_decay make it, got {got:.6g}"
                )

    def _slot(self, name: str, number: int):
        """Slot `number` of a tensor as torch sees it."""
        key = name, number
        if key not in self._views:
            array, flat = self._tensors_of_model[name], self.trainer.slots[number]
            start = (array.ctypes.data - self.trainer.model.parameters.ctypes.data) // array.itemsize
            self._views[key] = self._torch.from_numpy(flat[start : start + array.size].reshape(array.shape).T)
        return self._views[key]

    def _lend_state(self) -> None:
        """Put views of the slots and of the counts into the optimizer's state."""
        torch = self._torch
        with torch.inference_mode(False):
            counted = {"step": torch.from_numpy(self._counts)}
            if self._products is not None:
                counted["mu_product"] = torch.from_numpy(self._products)
            for k, (name, p, _) in enumerate(self._active):
                entry = self.optimizer.state[p]
                for key in self._rule.scalars:
                    entry[key] = counted[key][k]
                for number, slot in enumerate(self._slots):
                    if slot is not None:
                        entry[slot] = self._slot(name, number)
