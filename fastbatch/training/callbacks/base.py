"""What a callback is: hooks between epochs and between chunks of steps. Absent callbacks cost nothing."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ArgumentError, named_keywords

if TYPE_CHECKING:
    from ..trainer import Trainer

__all__ = ["Callback", "LambdaCallback", "Logs", "check_folder", "matching_states", "states_of", "steps_to_stop"]

Logs = dict[str, float]


class Callback:
    """Base of every callback; each hook does nothing.

    Weights read through the model's views are those after the last update; what a hook writes through them is what the
    next step starts from. ``self.trainer.stop_training = True`` ends the fit after the hook. An exception that a hook
    raises ends the fit and comes out of it; the trainer stays valid.

    Attributes
    ----------
    trainer : Trainer
        Set before ``on_train_begin``.
    every_n_steps : int or None
        A chunk ends wherever ``trainer.steps`` is a multiple of it, whatever the time.
    runs_last : bool
        Called after the callbacks without it, so that it sees what they have made of the epoch.
    steers : bool
        Whether training may go another way without it. A fit in which one with a state took part is not resumed
        without it; those that only look may be left out.
    ended : bool
        Whether it has ended the fit for good, so that nothing is left to resume.
    """

    trainer: Trainer
    every_n_steps: int | None = None
    runs_last = False
    steers = True
    ended = False

    def on_train_begin(self) -> None:
        """Start afresh: a callback serves several fits."""

    def on_train_end(self) -> None:
        """Also called when the fit ends by an exception."""

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """In front of the first update of an epoch.

        Parameters
        ----------
        epoch : int
            From 0 within this fit.
        logs : dict
            "epochs" of the fit, "steps" of this epoch, and its "batch_size".
        """

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Behind the last update of an epoch and its validation.

        Parameters
        ----------
        epoch : int
            From 0 within this fit.
        logs : dict
            What history gets.
        """

    def on_chunk_end(self, steps: int, logs: Logs) -> None:
        """After every slice of about 50 ms.

        Parameters
        ----------
        steps : int
            Updates of this epoch that are made.
        logs : dict
            "loss", the mean over them.
        """

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint must hold for the fit to go on as if it had not ended.

        Returns
        -------
        dict of str to value
            What JSON can hold, and arrays.
        """
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from there; called after the ``on_train_begin`` of a resumed fit.

        Parameters
        ----------
        state : dict
            What :meth:`get_state` gave.
        """


class LambdaCallback(Callback):
    """Callback from plain functions, given by the names of the hooks.

    Parameters
    ----------
    on_train_begin, on_train_end : callable ()
    on_epoch_begin, on_epoch_end : callable (epoch, logs)
    on_chunk_end : callable (steps, logs)

    Raises
    ------
    ArgumentError
        For something that cannot be called.
    """

    @named_keywords
    def __init__(
        self,
        *,
        on_train_begin: Callable[[], object] | None = None,
        on_train_end: Callable[[], object] | None = None,
        on_epoch_begin: Callable[[int, Logs], object] | None = None,
        on_epoch_end: Callable[[int, Logs], object] | None = None,
        on_chunk_end: Callable[[int, Logs], object] | None = None,
    ) -> None:
        hooks = {
            "on_train_begin": on_train_begin,
            "on_train_end": on_train_end,
            "on_epoch_begin": on_epoch_begin,
            "on_epoch_end": on_epoch_end,
            "on_chunk_end": on_chunk_end,
        }
        for name, hook in hooks.items():
            if hook is not None:
                if not callable(hook):
                    raise ArgumentError(f"LambdaCallback({name}=): expected a callable, got {hook!r}")
                setattr(self, name, hook)


def check_folder(where: str, path: str | os.PathLike) -> None:
    """ArgumentError unless the folder of `path` exists; asked before the work, not behind it."""
    if not Path(path).absolute().parent.is_dir():
        raise ArgumentError(f"{where}: expected a folder that exists, got {Path(path).parent}")


def states_of(hooks: Iterable[Callback]) -> list[tuple[str, bool, dict[str, Any]]]:
    """Class, `steers` and a copy of the state of each callback that has one."""
    return [
        (type(hook).__name__, hook.steers, copy.deepcopy(hook.get_state())) for hook in hooks if _has_state(type(hook))
    ]


def _has_state(kind: type[Callback]) -> bool:
    return kind.get_state is not Callback.get_state


def matching_states(
    hooks: Iterable[Callback], states: Iterable[tuple[str, bool, dict[str, Any]]]
) -> list[dict[str, Any] | None]:
    """The state of each of `hooks`, or None: those of one class get its states in their order.

    Raises
    ------
    ArgumentError
        When a state is left over whose callback steered the fit. A callback that steers and gets none is warned of.
    """
    left, found = list(states), []
    for hook in hooks:
        name = type(hook).__name__
        place = next((k for k, (kind, _, _) in enumerate(left) if kind == name), None)
        found.append(None if place is None else left.pop(place)[2])
        if place is None and hook.steers and _has_state(type(hook)):
            warnings.warn(
                f"resume: {name} was not part of the interrupted fit and starts afresh; the result is not that of a "
                "fit without interruption",
                RuntimeWarning,
                stacklevel=5,  # the caller of resume
            )
    missing = [name for name, steers, _ in left if steers]
    if missing:
        raise ArgumentError(
            f"resume(callbacks=): expected those of the interrupted fit again, got none for {', '.join(missing)}"
        )
    return found


def steps_to_stop(hooks: Iterable[Callback], steps: int) -> int | None:
    """Updates from `steps` to the next one behind which a callback asks for the end of a chunk; None for no such."""
    ahead = [hook.every_n_steps - steps % hook.every_n_steps for hook in hooks if hook.every_n_steps]
    return min(ahead, default=None)
