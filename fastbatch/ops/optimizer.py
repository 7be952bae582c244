"""What every optimizer is: an immutable description, its settings of single layers, and its rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral
from typing import Any, ClassVar

import numpy as np

from ..errors import ArgumentError, as_float, did_you_mean, unknown_name
from ..schedules import LARGEST, Schedule
from .formula import Formula
from .semantics import check_semantics

__all__ = ["Optimizer", "hold_columns"]

Array = np.ndarray

# Of the fields, those that are not a matter of one layer.
_OF_ALL_LAYERS = ("lr", "frozen", "groups", "semantics", "initial_accumulator_value")


@dataclass(frozen=True)
class Optimizer:
    """Base of every optimizer.

    A subclass has a field weight_decay and states `rule` (the row of ``csrc/ops/optimizers.def`` that runs it),
    `constants()` (the numbers that row asks for, by name, `decay` among them as weight_decay) and `update`. `lr` is a
    number or a schedule; what runs is `rate` or `rates` of the update.

    Parameters
    ----------
    lr : float or Schedule
    l1 : float, default 0
        L1 penalty: ``l1 * sign(p)`` is added to the gradient, with sign(0) = 0. Coupled in every optimizer.
    decay_bias : bool, default True
        Whether weight_decay and l1 hold for biases, too.
    frozen : sequence of int or str, default ()
        Layers that are not updated and whose slots do not change. A layer is its index in ``model.weights``, negative
        from the end. A single tensor is its name in files of models: "0.w", "0.b", "norm0.gamma", "norm0.beta".
    groups : dict of int or str to dict, default {}
        Settings of single layers: ``{0: {"lr": 1e-4}, -1: {"weight_decay": 0}}``. Those of a tensor, by its name, come
        on top of its layer's: ``{"0.b": {"weight_decay": 0}}``. Any number of the optimizer that does
        not change what its slots are, and ``lr_factor``, which multiplies the optimizer's rate, also that of a
        schedule. ``lr`` is another way to say that, beside an lr that is a number; it is kept as the factor.
    max_norm : float, optional
        After every update the weights that come into a unit, a column of w, are scaled down to this Euclidean norm
        where theirs is larger (Srivastava et al. 2014, JMLR 15, section 5.1; Keras' MaxNorm). Biases and norms stay as
        they are.
    semantics : {"torch", "sklearn", "keras"}, default "torch"
        Whose formula is meant where the three differ under one name (docs/optimizers.md); defaults stay torch's.

    Attributes
    ----------
    normed : bool
        Whether the rate depends on norms of the whole tensor, so that tensors are updated one by one.
    shrinks : bool
        Whether weight_decay is no part of the gradient, but shrinks the parameter by ``lr * weight_decay``.
    formula : Formula or None
        Of one of a user's own.
    """

    lr: float | Schedule = 1e-3
    l1: float = field(default=0.0, kw_only=True)
    decay_bias: bool = field(default=True, kw_only=True)
    frozen: tuple[int | str, ...] = field(default=(), kw_only=True)
    groups: dict[int | str, dict[str, Any]] = field(default_factory=dict, kw_only=True, hash=False)
    max_norm: float | None = field(default=None, kw_only=True)
    semantics: str = field(default="torch", kw_only=True)

    rule: ClassVar[str]
    normed: ClassVar[bool] = False
    shrinks: ClassVar[bool] = False
    formula: ClassVar[Formula | None] = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if each.type == "bool":
                if not isinstance(value, (bool, np.bool_)):
                    self._refuse(each.name, "True or False")
            elif each.type.startswith("float"):
                if each.name == "lr" and isinstance(value, Schedule):
                    continue
                if each.name == "max_norm":
                    if value is not None and not _is_limit(value):
                        self._refuse("max_norm", "a finite number > 0 or None")
                    continue
                if not 0 <= as_float(value) <= LARGEST:
                    also = " or a schedule" * (each.name == "lr")
                    self._refuse(each.name, "a finite number >= 0 that float32 can hold" + also)
            elif each.name == "betas" and not (
                isinstance(value, (tuple, list)) and len(value) == 2 and all(0 <= as_float(beta) < 1 for beta in value)
            ):
                self._refuse("betas", "a pair of numbers in [0, 1)")
        check_semantics(type(self).__name__, self.semantics)
        if (
            isinstance(self.frozen, str)
            or not isinstance(self.frozen, Iterable)
            or not all(map(_is_layer, self.frozen))
        ):
            self._refuse("frozen", "indices of layers or names of tensors, such as (0, 1) or ('0.b',)")
        object.__setattr__(self, "frozen", tuple(self.frozen))
        self._check_groups()

    def _check_groups(self) -> None:
        groups = self.groups
        if not isinstance(groups, dict) or not all(
            _is_layer(layer) and isinstance(values, dict) for layer, values in groups.items()
        ):
            self._refuse("groups", "a dict of layer indices or names of tensors to dicts, such as {0: {'lr': 1e-4}}")
        allowed = [each.name for each in fields(self) if each.name not in _OF_ALL_LAYERS] + ["lr", "lr_factor"]
        found = {}
        seen: list[dict[str, Any]] = []  # many tensors may share their settings, and a description takes 10 us
        for layer, values in groups.items():
            where = f"{type(self).__name__}(groups={{{layer!r}: ...}})"
            for name in values:
                if name not in allowed:
                    raise ArgumentError(f"{where}: {name!r} is not a setting of a layer{did_you_mean(name, allowed)}")
            own = {name: value for name, value in values.items() if name != "lr"}
            if "lr" in values:
                if "lr_factor" in values:
                    raise ArgumentError(f"{where}: expected lr or lr_factor, got both")
                own["lr_factor"] = self._factor(values["lr"], where)
            factor = own.get("lr_factor", 1.0)
            if not 0 <= as_float(factor) < math.inf:
                raise ArgumentError(f"{where}: expected an lr_factor that is a finite number >= 0, got {factor!r}")
            if not isinstance(self.lr, Schedule) and self.lr * factor > LARGEST:
                raise ArgumentError(f"{where}: expected a rate that float32 can hold, got {self.lr * factor}")
            found[layer] = own
            if own in seen:
                continue
            seen.append(own)
            row = self._with(own)
            if (row.rule, row.slots) != (self.rule, self.slots):
                raise ArgumentError(f"{where}: expected settings under which the slots stay the same, got {values}")
        object.__setattr__(self, "groups", found)

    def _factor(self, lr: object, where: str) -> float:
        """The rate `lr` of a layer, as a multiple of this description's: it stays that when the rate changes."""
        if isinstance(self.lr, Schedule) or self.lr == 0:
            raise ArgumentError(
                f"{where}: expected lr_factor, got lr beside an lr of {self.lr!r}, which is not a number above 0"
            )
        if not 0 <= as_float(lr) < math.inf:
            raise ArgumentError(f"{where}: expected as lr of a layer a finite number >= 0, got {lr!r}")
        return as_float(lr) / float(self.lr)

    def _with(self, values: dict[str, Any]) -> Optimizer:
        """This description with the settings of a layer."""
        own = {name: value for name, value in values.items() if name != "lr_factor"}
        return replace(self, groups={}, frozen=(), **own)

    def _refuse(self, name: str, expected: str) -> None:
        raise ArgumentError(f"{type(self).__name__}({name}=): expected {expected}, got {getattr(self, name)!r}")

    def _refuse_zero(self, name: str) -> None:
        if getattr(self, name) == 0:
            self._refuse(name, "a finite number > 0")

    def settings(self, tensors: Mapping[str, int]) -> dict[str, tuple[Optimizer, float] | None]:
        """Of each tensor the description of its update and its factor of the rate; None where frozen.

        Parameters
        ----------
        tensors : mapping of str to int
            The names of the model's tensors, and the index of the layer that each of them goes with.

        Raises
        ------
        ArgumentError
            For a layer or tensor that is not there, or that has two groups.
        """
        layers = 1 + max(tensors.values())
        frozen = {self._found("frozen", key, layers, tensors) for key in self.frozen}
        own: dict[int | str, dict[str, Any]] = {}
        for key, values in self.groups.items():
            place = self._found("groups", key, layers, tensors)
            if place in own:
                raise ArgumentError(f"{type(self).__name__}(groups=): layer {place} is there twice")
            own[place] = values
        plain = replace(self, groups={}, frozen=()) if self.groups or self.frozen else self
        made: dict[tuple[Any, ...], tuple[Optimizer, float]] = {}  # tensors of equal settings share a description
        found: dict[str, tuple[Optimizer, float] | None] = {}
        for name, layer in tensors.items():
            values = {**own.get(layer, {}), **own.get(name, {})}
            same = tuple(values.items())
            if same not in made:
                made[same] = (self._with(values) if values else plain), float(values.get("lr_factor", 1.0))
            found[name] = None if frozen & {layer, name} else made[same]
        return found

    def _found(self, where: str, key: int | str, layers: int, tensors: Mapping[str, int]) -> int | str:
        """`key` of ``groups`` or ``frozen`` as one of the model's layers, from 0, or names."""
        if isinstance(key, str):
            if key not in tensors:
                raise unknown_name(f"{type(self).__name__}({where}=)", key, tensors)
            return key
        if not -layers <= key < layers:
            raise ArgumentError(
                f"{type(self).__name__}({where}=): expected layers in {-layers} .. {layers - 1}, the dense "
                f"layers of the model, got {key}"
            )
        return key % layers

    def of_bias(self) -> Optimizer:
        """What updates a bias. scikit-learn never decays them."""
        if self.decay_bias and self.semantics != "sklearn":
            return self
        return replace(self, l1=0.0, weight_decay=0.0)  # type: ignore[call-arg]

    @property
    def _weight_decay(self) -> float:
        return self.weight_decay  # type: ignore[attr-defined]

    @property
    def ahead(self) -> float:
        """The weight decay that shrinks a parameter in front of its rule: Keras', where the rule does not do it."""
        return self._weight_decay if self.semantics == "keras" and not self.shrinks else 0.0

    @property
    def decay(self) -> float:
        """The weight decay that is the rule's own."""
        return 0.0 if self.ahead else self._weight_decay

    @property
    def by_weight(self) -> bool:
        """Whether weight_decay is divided by the total weight of the batch: scikit-learn's penalty of the loss."""
        return self.semantics == "sklearn" and not (self.shrinks or self.normed) and self._weight_decay > 0

    def at_scale(self, scale: float) -> Optimizer:
        """The description for a batch of total weight 1 / `scale`."""
        if not self.by_weight:
            return self
        return replace(self, weight_decay=self._weight_decay * scale)  # type: ignore[call-arg]

    def rate(self, t: int) -> float:
        """Learning rate of update `t`, counted from 0."""
        return self.lr(t) if isinstance(self.lr, Schedule) else float(self.lr)

    def rates(self, first: int, count: int) -> Array:
        """Learning rates of the updates `first` .. `first + count - 1`, (count,) float64."""
        return self.lr.values(first, count) if isinstance(self.lr, Schedule) else np.full(count, float(self.lr))

    @property
    def slots(self) -> int:
        """Number of state values per parameter, S."""
        raise NotImplementedError

    def begin(self, slots: Array) -> None:
        """Set `slots` (S, N), zeros so far, to what they are before the first update."""

    def constants(self) -> dict[str, float]:
        """The hyperparameters that the rule reads, by name, without the learning rate."""
        raise NotImplementedError

    def update(self, p: Array, g: Array, slots: Array, t: int, lr: float) -> None:
        """Update `p` (N,) and `slots` (S, N) in place from the gradient `g` (N,); `t` counts updates from 1."""
        raise NotImplementedError

    def _penalised(self, p: Array, g: Array, lr: float, l2: float = 0.0) -> Array:
        """`g` with the penalties that enter the gradient; shrinks `p` where that comes in front of the rule."""
        if self.l1:
            g = g + self.l1 * np.sign(p)
        if self.ahead:
            p -= lr * self.ahead * p
        return g + l2 * p if l2 else g


def hold_columns(w: Array, most: float) -> None:
    """Scale each column of `w` (I, O) whose norm exceeds `most` down to it, in place; the others keep their bits."""
    norm = np.sqrt(np.square(w, dtype=np.float64).sum(axis=0))
    w *= np.divide(most, norm, out=np.ones_like(norm), where=norm > most).astype(w.dtype)


def _is_limit(value: object) -> bool:
    return 0 < as_float(value) < math.inf


def _is_layer(index: object) -> bool:
    return isinstance(index, (Integral, str)) and not isinstance(index, bool)
