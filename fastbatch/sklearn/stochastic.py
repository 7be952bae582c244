"""The solvers sgd and adam: a fit of the trainer in scikit-learn's order of rows."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import issparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import get_scorer
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state

from .. import checks
from ..batching import NoiseScale
from ..errors import ArgumentError, DivergenceError
from ..layers import BatchNorm, Layer
from ..training import EMA
from ..training.door import Data
from . import settings, sparse
from .epochs import Epochs
from .rows import Rows, Solver, Task, Validation, offset

if TYPE_CHECKING:
    from .base import BaseMLP

__all__ = ["check", "fit", "one_epoch", "solver"]

Array = np.ndarray
RandomState = np.random.RandomState


def solver(estimator: BaseMLP, random_state: RandomState) -> Solver:
    """The trainer for a fit that begins, or a first partial_fit."""
    # drawn only where something asks for it: the other draws are scikit-learn's
    seed = int(random_state.randint(2**31 - 1)) if estimator.dropout else 0
    return Solver(settings.trainer_of(estimator, estimator._model, estimator._loss, seed), estimator)


def check(estimator: BaseMLP, X, layers: Sequence[Layer]) -> None:
    """Refuse what cannot be trained together, in front of everything that changes the estimator.

    Raises
    ------
    ArgumentError
        For batches that follow the noise scale where `layers` have norms over rows, and what sparse rows do without.
    """
    size = estimator.batch_size
    policy = size if isinstance(size, NoiseScale) or (isinstance(size, str) and size == "noise") else None
    if policy is not None and any(isinstance(layer, BatchNorm) for layer in layers):
        raise ArgumentError(
            f"batch_size: expected a number or a schedule with norm='batch', in which rows have no gradients of their "
            f"own, got {policy!r}"
        )
    if issparse(X):
        sparse.check(estimator, X, policy)


def fit(estimator: BaseMLP, rows: Rows, held_out: Rows | None, random_state: RandomState) -> None:
    """Train for up to max_iter epochs; `held_out` are the validation rows that the user gave."""
    estimator._optimizer = solver(estimator, random_state)
    chosen: Array | int = len(rows)
    validation = None
    if held_out is not None:
        validation = _validation(estimator, held_out)
    elif estimator.early_stopping:
        chosen, others = _split(estimator, rows.targets, random_state)
        validation = _validation(estimator, rows.take(others))
    if validation is not None and estimator.validation_scores_ is None:
        estimator.validation_scores_, estimator.validation_loss_curve_ = [], []
    task = _task(estimator, rows)
    ours = _train(estimator, rows, chosen, random_state, estimator.max_iter, validation, task)
    if estimator.n_iter_ == estimator.max_iter and not ours.stopped:
        warnings.warn(
            f"Stochastic Optimizer: Maximum iterations ({estimator.max_iter}) reached and the optimization hasn't "
            "converged yet.",
            ConvergenceWarning,
            stacklevel=5,
        )
    if task is not None:
        task.context.call_on_fit_task_end(
            estimator=estimator, reconstruction_attributes=estimator._as_fitted, **task.seen
        )


def one_epoch(estimator: BaseMLP, rows: Rows, random_state: RandomState | None) -> None:
    """What partial_fit does: an epoch of the trainer there is, as a single step where all rows are one batch."""
    count, size = len(rows), estimator.batch_size
    if random_state is None and count > 1 and estimator.shuffle:  # one row draws nothing, and a generator takes 10 us
        random_state = check_random_state(estimator.random_state)
    single = count <= (200 if isinstance(size, str) and size == "auto" else size if isinstance(size, int) else 0)
    if not single or len(estimator.callbacks):
        _train(estimator, rows, count, random_state, 1)
        return
    if random_state is not None and estimator.shuffle:
        rows = rows.take(_order(count, random_state)(0))
    trainer = estimator._optimizer.trainer
    ours = Epochs(estimator, count, offset=offset(trainer.loss, rows.targets, rows.weight))
    ours.trainer = trainer
    estimator.n_iter_ = 0
    X = rows.X.toarray() if issparse(rows.X) else rows.X
    ours.on_epoch_end(0, {"loss": trainer.step(X, rows.targets, rows.weight)})


def _order(chosen: Array | int, random_state: RandomState) -> Callable[[int], Array]:
    """The order of scikit-learn's epochs: each shuffles that of the one before.

    `chosen` are the indices of the training rows, or their number.
    """
    order = np.arange(chosen if isinstance(chosen, int) else len(chosen))

    def following(epoch: int) -> Array:
        nonlocal order
        positions = np.arange(len(order))
        random_state.shuffle(positions)
        order = order[positions]
        return order if isinstance(chosen, int) else chosen[order]

    return following


def _split(estimator: BaseMLP, targets: Array, random_state: RandomState) -> tuple[Array, Array]:
    """scikit-learn's training and validation rows: in equal proportion of both classes where there are two."""
    stratify = targets.astype(bool) if estimator._classifies and estimator.n_outputs_ == 1 else None
    chosen, others = train_test_split(
        np.arange(len(targets)), random_state=random_state, test_size=estimator.validation_fraction, stratify=stratify
    )
    if len(others) < 2:
        raise ArgumentError(
            "The validation set is too small. Increase 'validation_fraction' or the size of your dataset: expected at "
            f"least 2 rows, got {len(others)}"
        )
    return chosen, others


def _validation(estimator: BaseMLP, rows: Rows) -> Validation:
    scoring = estimator.scoring
    score: Callable[[Array], float] | None = None
    if scoring is None:

        def score(outputs: Array) -> float:
            return estimator._score_of(outputs, rows)

    elif scoring != "loss":
        scorer = get_scorer(scoring) if isinstance(scoring, str) else scoring
        twin = copy.copy(estimator)  # shares the network
        twin.__dict__.pop("feature_names_in_", None)  # X has lost them on its way here
        keywords = {} if rows.weight is None else {"sample_weight": rows.weight}

        def score(outputs: Array) -> float:
            return scorer(twin, rows.X, rows.y, **keywords)

    loss, model = estimator._optimizer.trainer.loss, estimator._model
    targets = checks.as_targets(rows.targets, loss, len(rows), model.output_size, model.dtype, "y_val")
    weight = checks.as_weight(rows.weight, len(rows), "sample_weight_val")
    return Validation(Data(rows.X, targets, weight), score, offset(loss, rows.targets, rows.weight))


def _task(estimator: BaseMLP, rows: Rows) -> Task | None:
    """What callbacks of scikit-learn are told of this fit; None where there are none."""
    if not (hasattr(estimator, "_skl_callbacks") or hasattr(estimator, "_parent_callback_ctx")):
        return None
    context = estimator._init_callback_context(max_subtasks=estimator.max_iter)
    metadata = None if rows.weight is None else {"sample_weight": rows.weight}
    seen = {"X": rows.X, "y": rows.y, "metadata": metadata}
    context.call_on_fit_task_begin(estimator=estimator, **seen)
    return Task(context, seen)


def _batch_size(estimator: BaseMLP, rows: int) -> Any:
    size = estimator.batch_size
    if isinstance(size, str) and size == "auto":
        return min(200, rows)
    if isinstance(size, (int, np.integer)) and size > rows:
        warnings.warn(f"batch_size: {size} is more than the {rows} samples; all of them are taken", stacklevel=6)
    return size


def _train(
    estimator: BaseMLP,
    rows: Rows,
    chosen: Array | int,
    random_state: RandomState | None,
    epochs: int,
    validation: Validation | None = None,
    task: Task | None = None,
) -> Epochs:
    """A fit of the trainer there is, on the chosen rows, or all where that is their number."""
    every = isinstance(chosen, int)
    count, part = (chosen, slice(None)) if isinstance(chosen, int) else (len(chosen), chosen)
    batch, trainer = _batch_size(estimator, count), estimator._optimizer.trainer
    constant = offset(trainer.loss, rows.targets[part], None if rows.weight is None else rows.weight[part])
    hooks, ema = list(estimator.callbacks), None
    if estimator.ema is not None:
        # a look at the end of every epoch, wherever chunks of time end; behind every update where sizes change
        steps = -(-count // batch) if isinstance(batch, (int, np.integer)) else 1
        ema = EMA(estimator.ema, every_n_steps=steps)
        hooks = [ema, *hooks]
    ours = Epochs(estimator, count, validation, constant, task, ema)
    order: Any = None if every else lambda epoch: chosen
    if estimator.shuffle and random_state is not None:
        order = _order(chosen, random_state)
    estimator.n_iter_ = 0
    try:
        if issparse(rows.X):
            sparse.fit(estimator, rows, ours, batch, epochs, order)
        else:
            trainer.fit(
                rows.X,
                rows.targets,
                batch,
                epochs,
                sample_weight=rows.weight,
                shuffle=order or False,
                callbacks=[ours, *hooks],
                verbose=0,
                check_finite=rows.X.dtype.itemsize > np.dtype(trainer.model.dtype).itemsize,
            )
    except KeyboardInterrupt:
        warnings.warn("Training interrupted by user.", stacklevel=6)
    except DivergenceError as error:
        if not estimator.early_stopping:
            raise
        estimator.validation_scores_.append(float("nan"))
        warnings.warn(f"{error}; the best weights so far are kept", RuntimeWarning, stacklevel=6)
    if ema is not None:
        trainer.model.parameters[:] = ema.parameters
    ours.restore()
    return ours
