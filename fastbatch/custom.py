"""Activations, losses and optimizers of one's own, from plain scalar functions (docs/custom.md)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import suppress
from copy import deepcopy
from dataclasses import make_dataclass, replace
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from .errors import ArgumentError, as_float, missing_operations, named_fields, named_keywords
from .ops.activations import ACTIVATIONS, SYNONYMS, Activation
from .ops.formula import Formula, frozen
from .ops.loss import Loss
from .ops.losses import LOSSES
from .ops.optimizer import Optimizer
from .ops.optimizers import OPTIMIZERS

__all__ = ["activation", "loss", "optimizer"]

Array = np.ndarray

# What the registers of csrc and of backends/scalars have room for, besides weight_decay
MOST_SLOTS, MOST_HYPERS, MOST_CONSTANTS = 3, 6, 8

# Updates whose constants are looked at: what divides by 1 - beta**t, or a power of t, is at its worst at the ends
_UPDATES = (1, 2, 10, 100, 1000, 1_000_000)

# Off any point where somebody would put a kink
_POINTS = tuple(float(point) for point in np.linspace(-19.713, 20.171, 173))
# Where a formula must still give an answer, if only inf
_FAR = (-1e4, -1e2, 1e2, 1e4)
_TARGETS = {
    "values": (-3.217, -0.183, 0.0, 1.391, 7.113),
    "counts": (0.0, 0.683, 1.391, 7.113),
    "positive": (0.011, 0.683, 1.391, 7.113),
    "binary": (0.0, 0.317, 1.0),
}


@named_keywords
def activation(
    function: Callable | None = None, *, derivative: Callable | None = None, gain: str = "he"
) -> Callable[..., Any]:
    """Register a scalar function as an activation, under its own name.

    ``@fb.activation(derivative=lambda z: ...)`` above ``def mish(z): ...``, and ``activation="mish"`` from there on.

    Parameters
    ----------
    function : callable
        ``a = function(z)``, of one number: math, NumPy's functions of numbers, other such functions.
    derivative : callable, optional
        ``da/dz = derivative(z)``. Without it a model can predict, but not be trained.
    gain : {"he", "glorot"}, default "he"
        The initialization that ``init="auto"`` picks in front of it.

    Returns
    -------
    callable
        The function.

    Raises
    ------
    ArgumentError
        For the name of a built-in, a function that raises, or a derivative that is not the function's.
    """
    if gain not in ("he", "glorot"):
        raise ArgumentError(f"fb.activation(gain=): expected he or glorot, got {gain!r}")

    def register(function: Callable) -> Callable:
        name = _name("activation", function, ACTIVATIONS, SYNONYMS)
        formula = _formula("activation", function, derivative, ("z",))
        _try(formula, [(far,) for far in _FAR])
        _compare(formula, [(point,) for point in _POINTS])
        with np.errstate(all="ignore"):
            zero = formula.at(formula.value, np.float64(0.0))
            for z in (*_FAR, *_POINTS):
                if np.isnan(formula.at(formula.value, np.float64(z))):
                    raise ArgumentError(f"{name}: expected a number at ({z:g}), got nan")
        if not np.isfinite(zero):  # kernels look at padding, which is what it makes of zero
            raise ArgumentError(f"{name}: expected a finite number at (0), got {zero}")
        ACTIVATIONS[name] = Activation(name, formula.values, formula.slopes, "z", gain, formula=formula)
        return function

    return register if function is None else register(function)


@named_keywords
def loss(
    function: Callable | None = None, *, derivative: Callable | None = None, targets: str = "values"
) -> Callable[..., Any]:
    """Register a scalar function as a loss, under its own name: the mean of it over rows and outputs.

    Parameters
    ----------
    function : callable
        ``function(a, y)``, of an output and its target.
    derivative : callable, optional
        The slope ``derivative(a, y)`` with respect to the output. Without it nothing can be trained with the loss.
    targets : {"values", "counts", "positive", "binary"}, default "values"
        What y holds: any numbers, those >= 0, those > 0, those in [0, 1].

    Returns
    -------
    type
        The class of the loss: ``loss="name"`` and ``loss=name()`` are the same.

    Raises
    ------
    ArgumentError
        As :func:`activation`.
    """
    if targets not in _TARGETS:
        raise ArgumentError(f"fb.loss(targets=): expected one of {', '.join(_TARGETS)}, got {targets!r}")

    def register(function: Callable) -> type[Loss]:
        name = _name("loss", function, LOSSES, ())
        formula = _formula("loss", function, derivative, ("a", "y"))
        _try(formula, [(far, y) for far in _FAR for y in _TARGETS[targets]])
        _compare(formula, [(point, y) for point in _POINTS for y in _TARGETS[targets]])
        LOSSES[name] = _class(function, _CustomLoss, [], name=name, formula=formula, targets=targets)
        return LOSSES[name]

    return register if function is None else register(function)


def optimizer(
    function: Callable | None = None, *, slots: int = 0, constants: Callable | None = None, **hyper: float
) -> Callable[..., Any]:
    """Register a scalar function as an optimizer, under its own name.

    Parameters
    ----------
    function : callable
        ``p, s0 .. = function(p, g, s0 .., lr, t, *hyper)``: parameter and state after update `t`, counted from 1.
        `g` has weight_decay and l1 in it.
    slots : int, default 0
        State values per parameter, at most 3; 0 in the beginning.
    constants : callable, optional
        ``constants(lr, t, *hyper)``, once per update and in double: numbers that `function` is given in place of lr, t
        and hyper, at most 8. For what is the same for all parameters, such as ``1 - beta**t``.
    **hyper : float
        Names and defaults of the settings, numbers >= 0, at most 6.

    Returns
    -------
    type
        The class of the optimizer, whose keywords are lr, those of `hyper`, weight_decay (coupled), and those of every
        optimizer: ``optimizer=name(lr=0.1)``, or ``optimizer="name"`` with its defaults.

    Raises
    ------
    ArgumentError
        For the name of a built-in, a setting named as something that every optimizer has (lr, decay, rate ..), or a
        function that returns something else than 1 + slots numbers.
    """
    taken = {"t", "weight_decay", *dir(_CustomOptimizer), *_CustomOptimizer.__annotations__, *Optimizer.__annotations__}
    for setting, value in hyper.items():
        if setting in taken:
            raise ArgumentError(f"fb.optimizer: {setting!r} is a name that every optimizer has; choose another name")
        if not 0 <= as_float(value) < np.inf:
            raise ArgumentError(f"fb.optimizer({setting}=): expected a finite number >= 0, got {value!r}")
    if isinstance(slots, bool) or slots not in range(MOST_SLOTS + 1):
        raise ArgumentError(f"fb.optimizer(slots=): expected an integer from 0 to {MOST_SLOTS}, got {slots!r}")
    if len(hyper) > MOST_HYPERS:
        raise ArgumentError(f"fb.optimizer: expected at most {MOST_HYPERS} settings, got {len(hyper)}")

    def register(function: Callable) -> type[Optimizer]:
        name = _name("optimizer", function, OPTIMIZERS, (cls.__name__ for cls in OPTIMIZERS.values() if _built_in(cls)))
        settings = ("lr", "t", *hyper)
        if constants is not None:
            _takes(f"fb.optimizer {name!r}, constants", constants, settings)
            constants_ = frozen(constants)
        else:
            _takes(f"fb.optimizer {name!r}", function, ("p", "g", *(f"slot {1 + i}" for i in range(slots)), *settings))
            constants_ = None
        formula = Formula(name, frozen(function), None, slots, tuple(hyper), constants_)
        count = _try_update(formula, [float(value) for value in hyper.values()])
        formula = replace(formula, count=count)
        fields = [(setting, "float", float(value)) for setting, value in hyper.items()]
        fields.append(("weight_decay", "float", 0.0))
        OPTIMIZERS[name.lower()] = _class(function, _CustomOptimizer, fields, rule=f"@{name}", formula=formula)
        return OPTIMIZERS[name.lower()]

    return register if function is None else register(function)


class _Own:
    """What is pickled by its name in a registry: who lacks it is told what to do, which a missing class would not."""

    kind: ClassVar[str]

    def __reduce__(self) -> tuple[Callable, tuple]:
        cls = type(self)
        if _REGISTRIES[self.kind].get(_key(self.kind, cls.__name__)) is not cls:
            raise ArgumentError(
                f"pickle: {self.kind} {cls.__name__!r} is not the one that is registered by that name now"
            )
        return _recall, (self.kind, cls.__module__, cls.__name__, self.__dict__)

    def __deepcopy__(self, memo: dict) -> _Own:
        twin = object.__new__(type(self))
        twin.__dict__.update(deepcopy(self.__dict__, memo))
        return twin


_REGISTRIES: dict[str, dict[str, Any]] = {"loss": LOSSES, "optimizer": OPTIMIZERS}


def _key(kind: str, name: str) -> str:
    return name.lower() if kind == "optimizer" else name


def _recall(kind: str, module: str, name: str, state: dict[str, Any]) -> Any:
    """The loss or optimizer that was pickled; its module is imported, as pickle would do."""
    if _key(kind, name) not in _REGISTRIES[kind]:
        with suppress(ImportError):
            import_module(module)
    cls = _REGISTRIES[kind].get(_key(kind, name))
    if cls is None:
        raise ArgumentError(missing_operations([(kind, name)]))
    twin = object.__new__(cls)
    twin.__dict__.update(state)
    return twin


class _CustomLoss(_Own, Loss):
    kind = "loss"
    formula: ClassVar[Formula]

    def elements(self, a: Array, y: Array) -> tuple[Array, Array]:
        return self.formula.values(a, y), self.formula.slopes(a, y)


class _CustomOptimizer(_Own, Optimizer):
    kind = "optimizer"
    formula: ClassVar[Formula]

    def __post_init__(self) -> None:
        super().__post_init__()
        _, *hyper = self.constants().values()
        _check_constants(type(self).__name__, self.formula, self.rate(0), hyper)

    @property
    def slots(self) -> int:
        return self.formula.slots

    def constants(self) -> dict[str, float]:
        return {"weight_decay": self.decay, **{name: float(getattr(self, name)) for name in self.formula.hyper}}

    def update(self, p: Array, g: Array, slots: Array, t: int, lr: float) -> None:
        g = self._penalised(p, g, lr, self.decay)
        _, *hyper = self.constants().values()
        self.formula.moved(p, g, slots, self.formula.prepared(lr, t, hyper))


def _class(function: Callable, base: type, fields: list[Any], **own: Any) -> type[Any]:
    """A frozen dataclass that pickle finds where the function was defined."""
    own["__qualname__"] = function.__qualname__
    own["__doc__"] = function.__doc__
    made = make_dataclass(function.__name__, fields, bases=(base,), namespace=own, frozen=True)
    made.__module__ = function.__module__  # not before: dataclasses want one that is in sys.modules
    return named_fields(made)


def _built_in(row: Any) -> bool:
    return getattr(row, "formula", None) is None


def _name(kind: str, function: Callable, registry: dict[str, Any], taken: Iterable[str]) -> str:
    """The function's name; a user's own may be replaced, as when a cell of a notebook runs again."""
    name = getattr(function, "__name__", None)
    if not inspect.isfunction(function) or name is None or not name.isidentifier():
        raise ArgumentError(f"fb.{kind}: expected a function made by def, got {function!r}")
    row = registry.get(_key(kind, name))
    if name in taken or (row is not None and _built_in(row)):
        raise ArgumentError(f"fb.{kind}: {name!r} is the name of a built-in; choose another name")
    return name


def _formula(kind: str, function: Callable, derivative: Callable | None, given: tuple[str, ...]) -> Formula:
    name = function.__name__
    _takes(f"fb.{kind} {name!r}", function, given)
    if derivative is not None:
        _takes(f"fb.{kind} {name!r}, derivative", derivative, given)
    return Formula(name, frozen(function), None if derivative is None else frozen(derivative))


def _takes(where: str, function: Any, given: tuple[str, ...]) -> None:
    """ArgumentError unless it is a function that can be called with the arguments `given`."""
    expected = f"expected a function of ({', '.join(given)})"
    if not inspect.isfunction(function):
        raise ArgumentError(f"{where}: {expected}, made by def or lambda, got {function!r}")
    try:
        inspect.signature(function).bind(*given)
    except TypeError:
        raise ArgumentError(f"{where}: {expected}, got {function.__name__}{inspect.signature(function)}") from None


def _try(formula: Formula, points: list[tuple[float, ...]]) -> None:
    with np.errstate(all="ignore"):
        for function in filter(None, (formula.value, formula.slope)):
            for point in points:
                found = formula.at(function, *map(np.float64, point))
                if not isinstance(found, (float, int, np.floating)):
                    where = ", ".join(f"{number:g}" for number in point)
                    array = isinstance(found, np.ndarray)
                    hint = "; it is called with one number: `b if z > 0.0 else c`, not np.where" if array else ""
                    raise ArgumentError(f"{formula.name}: expected a number at ({where}), got {found!r}{hint}")


def _compare(formula: Formula, points: list[tuple[float, ...]]) -> None:
    """The derivative against differences of the function: central ones of two widths, whose error of h^2 cancels."""
    if formula.slope is None:
        return
    with np.errstate(all="ignore"):
        for z, *others in points:
            rest, at = [np.float64(number) for number in others], np.float64(z)
            h = 1e-4 * (1 + abs(z))
            near, far = (
                (formula.at(formula.value, at + s, *rest) - formula.at(formula.value, at - s, *rest)) / (2 * s)
                for s in (h, 2 * h)
            )
            expected, got = (4 * near - far) / 3, formula.at(formula.slope, at, *rest)
            size = abs(expected) + abs(formula.at(formula.value, at, *rest)) * 1e-3
            # what the two differ by is far above their error, but near a kink
            if np.isfinite(expected) and not abs(got - expected) <= 1e-6 * max(size, 1.0) + abs(far - near):
                where = ", ".join(f"{number:.6g}" for number in (z, *others))
                raise ArgumentError(
                    f"{formula.name}: the derivative is wrong at ({where}): expected {float(expected):.8g}, the slope "
                    f"of {formula.name} there, got {float(got):.8g}"
                )


def _try_update(formula: Formula, hyper: list[float]) -> int:
    """The number of constants."""
    where, count = f"fb.optimizer {formula.name!r}", 1 + formula.slots
    for constants in _check_constants(where, formula, 1e-3, hyper):
        if formula.constants is not None:
            given = ("p", "g", *(f"slot {1 + i}" for i in range(formula.slots)))
            _takes(where, formula.value, (*given, *(f"constant {1 + i}" for i in range(len(constants)))))
        numbers = [np.float64(number) for number in (0.7, -0.3, *[0.0] * formula.slots)]
        found = formula.at(formula.value, *numbers, *constants)
        found = found if isinstance(found, tuple) else (found,)
        if len(found) != count or not all(_is_finite(number) for number in found):
            raise ArgumentError(
                f"{where}: expected {count} finite numbers, the parameter and {formula.slots} state values, got {found}"
            )
    return len(constants)


def _check_constants(where: str, formula: Formula, lr: float, hyper: list[float]) -> list[tuple[float, ...]]:
    """The constants of some updates; ArgumentError unless they are as many finite numbers in all of them."""
    found: list[tuple[float, ...]] = []
    with np.errstate(all="ignore"):
        prepared = [(t, formula.prepared(lr, t, hyper)) for t in _UPDATES]
    for t, constants in prepared:
        if not isinstance(constants, tuple):
            raise ArgumentError(f"{where}: expected a tuple of constants, got {constants!r}")
        if len(constants) > MOST_CONSTANTS or not all(map(_is_finite, constants)):
            raise ArgumentError(
                f"{where}: expected at most {MOST_CONSTANTS} finite constants, got {constants} at t={t}"
            )
        if found and len(constants) != len(found[0]):
            raise ArgumentError(f"{where}: expected {len(found[0])} constants as at t=1, got {constants} at t={t}")
        found.append(constants)
    return found


def _is_finite(value: Any) -> bool:
    return bool(np.isfinite(as_float(value)))
