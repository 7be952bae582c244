"""Training steps on a module's own parameters: forward, backward and update in one call.

The module's tensors are made to lie in the model's flat buffers, and the optimizer's state in the trainer's slots, so
that torch and fastbatch see each other's writes without a copy. Each step looks whether that is still so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from operator import attrgetter
from typing import Any

import numpy as np

from .. import checks
from ..errors import ArgumentError, BackendError, named_keywords
from ..model import model_parts
from ..schedules import LARGEST
from ..training import Trainer
from . import losses
from .modules import Found, import_torch, model_of, named, read
from .optimizers import Rule
from .state import LentState

__all__ = ["FusedStep", "fuse"]

Array = np.ndarray

_is_training = attrgetter("training")


@named_keywords
def fuse(
    module,
    loss_fn,
    optimizer,
    *,
    backend: str = "auto",
    num_threads: int | None = None,
    max_grad_norm: float | None = None,
    clip_value: float | None = None,
    seed: int = 0,
) -> FusedStep:
    """``step = fuse(module, loss_fn, optimizer)``: then ``loss = step(x, y)`` is a whole training step of `module`.

    It stands for zero_grad, forward, backward and the optimizer's step. The module's own parameters are trained, by the
    optimizer's own settings, which are read before every step: schedulers of torch work on it, state_dict and
    load_state_dict of both do, and steps of torch may come in between. docs/migrating_torch.md says what is different.

    Parameters
    ----------
    module : torch.nn.Module
        As of :func:`from_torch`.
    loss_fn : torch.nn.Module or function of torch.nn.functional
        MSELoss, L1Loss, HuberLoss, SmoothL1Loss (beta 1 or 0), PoissonNLLLoss, CrossEntropyLoss, BCEWithLogitsLoss,
        with reduction "mean".
    optimizer : torch.optim.Optimizer
        SGD, Adam, AdamW, RMSprop, Adagrad or NAdam, with any groups of the module's parameters. Parameters that are in
        none, or do not require a gradient, stay as they are.
    backend, num_threads, max_grad_norm, clip_value, seed
        As of :class:`fastbatch.Trainer`; there is no place for clip_grad_norm_ and clip_grad_value_ within a step.

    Returns
    -------
    FusedStep

    Raises
    ------
    ArgumentError, DTypeError, BackendError, ShapeError
        For what fastbatch does not have; names the submodule by its path, or the optimizer's group, and the reason.
        Nothing has been changed then.

    Notes
    -----
    ``parameter.data`` becomes a view of one flat buffer: values and identity stay, but weights lie transposed there,
    so that ``parameter.view(-1)`` refuses and ``parameter.reshape(-1)`` copies. autograd is not told of a step: a graph
    made before it must not be differentiated after it.
    """
    trainer = {"backend": backend, "num_threads": num_threads, "max_grad_norm": max_grad_norm, "clip_value": clip_value}
    return FusedStep(module, loss_fn, optimizer, {**trainer, "seed": seed})


@dataclass
class _Link:
    """A tensor of the module and the memory of the model that it shall lie in, as torch sees it."""

    name: str  # in files of models, or "" for a count of batches
    path: str
    home: dict[str, Any]
    key: str
    memory: Array

    @property
    def tensor(self) -> Any:
        return self.home[self.key]


def _dtype(tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _rate(given, caller: str) -> float:
    """A rate of torch's, which may be a tensor of one element."""
    if isinstance(given, (str, bytes)) or not hasattr(given, "__float__"):
        raise _no_rate(given, caller)
    rate = float(given)
    if not 0 <= rate <= LARGEST:
        raise _no_rate(given, caller)
    return rate


def _no_rate(given, caller: str) -> ArgumentError:
    return ArgumentError(f"{caller}: optimizer, lr: expected a finite number >= 0 that float32 can hold, got {given!r}")


class FusedStep(LentState):
    """What :func:`fuse` returns.

    Attributes
    ----------
    module, loss_fn, optimizer : as given
    trainer : fastbatch.Trainer
        Trains the same numbers: ``step.trainer.evaluate(X, y)``, ``step.trainer.predict(X)``.
    """

    _look: Callable[[], bool]  # whether all is as the last step has left it

    def __init__(self, module, loss_fn, optimizer, options: dict[str, Any]) -> None:
        self._torch = torch = import_torch()
        try:
            from .._native import Watch
        except ImportError as error:
            raise BackendError(f"fuse needs the compiled extension of fastbatch: {error}") from error
        self._watch = Watch
        self.module, self.loss_fn, self.optimizer = module, loss_fn, optimizer
        found = read(module, "fuse")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ArgumentError(f"fuse: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
        self._rule = Rule(optimizer, "fuse")
        self._flattens, self._layers = found.flattens, found.layers
        model = model_of(found)
        self._loss = losses.describe(loss_fn, model.output_size, "fuse")
        loss, self._ignored = self._loss
        self._tensors_of_model = model_parts(model)[0]
        self._paths = {name: path for name, (path, _, _) in found.tensors.items()}
        self._batches = np.zeros(len(found.batches), np.int64)
        self._links = self._link(found)
        self._check_tensors("fuse")
        self._names = {id(link.tensor): link.name for link in self._links if link.name}
        self._scalar = np.float64 if torch.get_default_dtype() is torch.float64 else np.float32  # of counts, as torch's
        self.trainer = Trainer(model, loss, self._described("fuse"), **options)
        model.loss = loss  # what the fast path of Trainer.step asks for
        self._slots = self._slots_now()
        self._fast_step: Callable[[Any, Any, float], float | None] = self.trainer._program.fast_step
        self._steps = self.trainer._steps
        self._views = {}
        with torch.inference_mode(False):  # what is made in it, torch could not train
            self._take_state()
            self._take_tensors()
        self._remember(found)
        if not all(map(_is_training, (part for _, part in found.modal))):
            self._look = bool  # the first step says so, unless train() comes before it
        optimizer._opt_called = True  # torch's schedulers warn unless the optimizer has stepped before them

    def __repr__(self) -> str:
        return f"FusedStep({self.loss_fn}, {type(self.optimizer).__name__}, backend={self.trainer.backend!r})"

    def __reduce__(self):
        raise ArgumentError("a fused step is bound to its module's memory: copy or save that, and fuse the copy")

    def __call__(self, x, y, sample_weight=None) -> np.float64:
        """One step on the rows `x` and their targets `y`: tensors, or anything else that :meth:`Trainer.step` takes.

        Parameters
        ----------
        x : (B, I) tensor or array_like
            Of more dimensions where the module begins with Flatten.
        y : tensor or array_like
        sample_weight : (B,) tensor or array_like, optional

        Returns
        -------
        numpy.float64
            The loss before the update: a float with `item()`.

        Raises
        ------
        ArgumentError
            When the module is in eval(), or module or optimizer have been changed into what fastbatch does not have.
        ShapeError, DTypeError, DataError, DivergenceError
            Nothing has been trained then.
        """
        groups, then = self.optimizer.param_groups, self._groups_then
        if (
            not self._look()
            or self.optimizer.state is not self._state
            or self._counts.item(0) != self._counted
            or len(groups) != len(then)
        ):
            self._follow()
            groups, then = self.optimizer.param_groups, self._groups_then
        if len(groups) == 1:
            then[0]["lr"] = groups[0]["lr"]  # passed on, not followed
        if groups != then and not self._in_proportion(groups):
            self._retune()
        lr = groups[self._leader]["lr"]
        if type(lr) is not float:
            lr = _rate(lr, "step")
        elif not 0 <= lr <= LARGEST:
            raise _no_rate(lr, "step")
        loss = self._fast_step(x, y, lr) if sample_weight is None else None
        if loss is None:
            loss = self._careful(x, y, sample_weight, lr)
        self._counted = t = self._steps.item()
        self._counts.fill(t)
        if self._counts_more:
            self._batches += 1
            if self._products is not None:
                self._products *= [self._rule.momentum(groups[i], t) for i in self._group_of]
        if self._unborn:
            self._unborn = False
            self._lend_state()
            self._remember(read(self.module, "step"))
        return np.float64(loss)

    def _careful(self, x, y, weight, lr: float) -> float:
        if self._flattens and hasattr(x, "ndim") and x.ndim > 2:
            x = x.reshape(len(x), -1)
        if self._ignored is not None:
            y = checks.as_array(y, "y")
            ignored = y == self._ignored
            if y.ndim == 1 and ignored.any():
                y = np.where(ignored, 0, y)
                weight = ~ignored * (1.0 if weight is None else checks.as_real(weight, "sample_weight"))
        self.trainer.lr_factor = lr
        return self.trainer.step(x, y, weight)

    # -- the module's tensors ------------------------------------------------------------------------------------------

    def _link(self, found: Found) -> list[_Link]:
        own = [
            _Link(name, *found.tensors[name], array.T)
            for name, array in self._tensors_of_model.items()
            if name in found.tensors
        ]
        return own + [_Link("", *place, self._batches[i : i + 1].reshape(())) for i, place in enumerate(found.batches)]

    def _check_tensors(self, caller: str) -> None:
        for link in self._links:
            tensor, memory = link.tensor, link.memory
            where = f"{caller}: {named(link.path)}"
            if tensor is None or (tuple(tensor.shape), _dtype(tensor), tensor.device.type) != (
                memory.shape,
                str(memory.dtype),
                "cpu",
            ):
                got = None if tensor is None else f"{tuple(tensor.shape)} of {_dtype(tensor)} on {tensor.device}"
                raise ArgumentError(f"{where}: expected {memory.shape} of {memory.dtype} on the CPU, got {got}")
            if tensor.is_shared():
                raise ArgumentError(
                    f"{where} lies in memory that processes share, and fused steps train memory of their own: "
                    "expected a module of this process, copy.deepcopy(module), say"
                )

    def _take_tensors(self) -> None:
        """Let every tensor of the module lie in the model's memory, with the values that it has now."""
        moved = []
        for link in self._links:
            tensor, view = link.tensor, self._torch.from_numpy(link.memory)
            if (tensor.data_ptr(), tensor.stride()) != (view.data_ptr(), view.stride()):
                moved.append((tensor, view, tensor.detach().clone()))  # it may lie where another one belongs
        for tensor, view, values in moved:
            view.copy_(values)
            tensor.data = view

    def _remember(self, found: Found) -> None:
        """What the next step looks at: any difference is followed."""
        self._state = self.optimizer.state
        settings = list(found.settings)
        if isinstance(self.loss_fn, self._torch.nn.Module):
            settings += [vars(self.loss_fn), self.loss_fn._buffers]
        homes = {id(link.home): link.home for link in self._links}.values()
        self._look = self._watch(
            self._torch.Tensor,
            [link.tensor for link in self._links],
            self._parameters,
            [*homes, self._state, *self._state.values(), *found.chains, *settings],
            [*found.hooks, *self._rule.hooks],
        ).same

    def _follow(self) -> None:
        """Take over what has changed since the last step."""
        self._check_tensors("step")
        found = read(self.module, "step")
        if found.layers != self._layers or found.flattens != self._flattens:
            pairs = zip_longest(self._layers, found.layers)
            then, now = next((pair for pair in pairs if pair[0] != pair[1]), ("no Flatten", "one"))
            raise ArgumentError(
                f"step: expected the module that was fused, with {then}, got {now} there: fuse it again"
            )
        if losses.describe(self.loss_fn, self.trainer.model.output_size, "step") != self._loss:
            raise ArgumentError(
                f"step: expected the loss that was fused, {self.trainer.loss}, got other settings: fuse again"
            )
        for path, part in found.modal:
            if not part.training:
                raise ArgumentError(
                    f"step: {named(path)} ({type(part).__name__}): expected training mode, got eval(); "
                    "module.train() first"
                )
        links = self._links = self._link(found)
        for link in links:
            if link.name and not link.key.startswith("running") and id(link.tensor) not in self._names:
                raise ArgumentError(
                    f"step: {named(link.path)} is another parameter than the optimizer's: expected a new fuse"
                )
        self._check_tensors("step")
        self._rule = Rule(self.optimizer, "step")
        with self.trainer._busy, self._torch.inference_mode(False):
            self._take_tensors()
            self._retune()
            self._take_state()
        self._remember(found)

    def _retune(self) -> None:
        look, self._look = self._look, bool  # until this succeeds, no step is taken
        described = self._described("step")
        if described.slots != self.trainer.optimizer.slots:
            kept = [", ".join(filter(None, slots)) or "none" for slots in (self._slots, self._slots_now())]
            raise ArgumentError(
                f"step: {self._rule.name}: expected settings that keep the state that was fused, {kept[0]}, got some "
                f"that keep {kept[1]}: fuse again"
            )
        self.trainer.retune(described)
        self._look = look

    # -- the optimizer -------------------------------------------------------------------------------------------------

    def _in_proportion(self, groups) -> bool:
        """Whether all that has changed are rates, in proportion: most schedulers move those of all groups alike."""
        rates, then = [_rate(group["lr"], "step") for group in groups], self._groups_then
        leader = rates[self._leader]
        for rate, group, past, share in zip(rates, groups, then, self._shares):
            if abs(rate - share * leader) > 1e-13 * rate or (leader == 0 and rate != 0):
                return False
            past["lr"] = group["lr"]
        return groups == then

    def _described(self, caller: str):
        """The optimizer as it is now; remembers by what it would be seen to change."""
        groups, rule, members = self.optimizer.param_groups, self._rule, []
        for i, group in enumerate(groups):
            for p in group["params"]:
                if id(p) not in self._names:
                    raise ArgumentError(
                        f"{caller}: optimizer, group {i}: expected parameters of the module, got one of shape "
                        f"{tuple(p.shape)} that no supported submodule holds"
                    )
            members.append([self._names[id(p)] for p in group["params"]])
        self._parameters = [p for group in groups for p in group["params"]]
        trained = {self._names[id(p)] for p in self._parameters if p.requires_grad}
        self._active = [
            (self._names[id(p)], p, i) for i, group in enumerate(groups) for p in group["params"] if p.requires_grad
        ]
        for name, p, _ in self._active:
            if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
                raise ArgumentError(
                    f"{caller}: {named(self._paths[name])} has gradient hooks, which fused steps would not call"
                )
        learnt = [name for name in self._tensors_of_model if not name.endswith((".mean", ".var"))]
        frozen: tuple[int | str, ...] = tuple(name for name in learnt if name not in trained)
        if not trained:
            raise ArgumentError(
                f"{caller}: expected an optimizer of parameters that require a gradient, got none of them"
            )
        rates = [_rate(group["lr"], caller) for group in groups]
        self._leader = rates.index(max(rates))
        self._shares = [rate / rates[self._leader] if rates[self._leader] else 1.0 for rate in rates]
        described = rule.describe(groups, members, frozen, self._shares)
        self._groups_then = [dict(group) for group in groups]
        return described
