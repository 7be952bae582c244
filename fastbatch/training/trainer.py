"""The trainer: a model, a loss, an optimizer and their state, and the methods that move them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .. import checks, memory, ops
from ..augment import Augmentation
from ..batching import Grow, NoiseScale
from ..batching.sizes import as_plain
from ..errors import ArgumentError, DivergenceError, FastbatchError, named_keywords, unknown_name
from ..layers import Dense
from ..model import Sequential
from ..plan import check_derivatives, make_plan
from ..program import make_program, predict_rows
from ..protocol import State
from . import checkpoints
from .callbacks import Callback
from .door import Exclusive, data_of, fit_data, hooks_of, inputs_of, sampling_of, scale_of
from .evaluation import evaluate
from .fit import Fit, Settings
from .history import History
from .steps import Steps

__all__ = ["Trainer"]

Array = np.ndarray

# Attributes that say what a trainer was made for: programs, state and files follow from them
FIXED = frozenset({
    "model", "loss", "optimizer", "metrics", "num_threads", "precision", "semantics", "max_grad_norm", "clip_value",
    "gradient_accumulation_steps", "seed",
})  # fmt: skip

PRECISIONS = ("float32", "bf16")


class Trainer(Steps):
    """Trains a model.

    Parameters
    ----------
    model : Sequential
        Trained in place; its views stay current.
    loss : str or Loss, default "cross_entropy"
    optimizer : str or Optimizer, optional
        Default ``Adam(lr=1e-3)``.
    metrics : sequence of str or callable, default ()
        Reported per epoch beside the loss: names of :mod:`fastbatch.ops.metrics` that fit the loss, or functions
        ``f(y_true, y_pred) -> float`` of the targets and the last layer's outputs, reported under their names. Names
        honour row weights; functions are not told of them. Rows of weight 0 are left out of both.
    backend : str, default "auto"
        "c", "reference", or the first that is available and supports the model.
    num_threads : int, optional
        Upper bound; the library uses fewer where more would not pay. Results are the same bits for any number.
    precision : str, default "float32"
        "bf16" multiplies in bfloat16, for large float32 models on CPUs where that is faster, in `fit` as in `predict`
        and `evaluate` of the trainer: operands of products are rounded to 8 bits, sums, weights, optimizer state and
        everything else stay float32.
    semantics : {"torch", "sklearn", "keras"}, default "torch"
        Whose formula optimizer and loss mean where the three differ under one name: docs/optimizers.md. "torch" leaves
        both as they are. With "sklearn" the losses that `fit` and `step` report are scikit-learn's loss_curve_,
        penalties included; those of `evaluate`, `gradients` and validation are without them.
    max_grad_norm : float, optional
        The mean gradient of an update is scaled down to this Euclidean norm, over all parameters together, where it is
        longer: torch's clip_grad_norm_. ``history["grad_norm"]`` then holds the mean over the epoch's updates of the
        norm before clipping.
    clip_value : float, optional
        Each element of the mean gradient is held to this magnitude, behind `max_grad_norm`: torch's clip_grad_value_.
    gradient_accumulation_steps : int, default 1
        In `fit` an update takes the concatenation of so many batches; what is left at the end of an epoch is one, too,
        over its own weight. `step` always updates.
    seed : int, default 0
        Of shuffles, dropout, splits and augmentation.

    Attributes
    ----------
    model, loss, optimizer : the descriptions
        Of these and the other arguments only the optimizer's lr may be changed.
    backend : str
        The backend that runs.
    steps : int
        Updates made so far.
    epochs : int
        Epochs completed so far; shuffles go on from here.
    history : History
        Of the last fit, also after it was interrupted.
    stop_training : bool
        Set it in a callback to end the fit.
    lr_factor : float
        Multiplies every rate of the optimizer's lr; 1.0 until ReduceLROnPlateau or the user changes it. ArgumentError
        for what is no finite number >= 0.
    input_scale : (scale (I,), shift (I,)) or None
        Every method of the trainer that takes inputs trains on or predicts from ``x * scale + shift``. Set by `fit`, or
        by hand to a pair of numbers or arrays; ``model.predict`` and a saved model do not know of it, but for
        :meth:`fold_input_scale`.
    slots : (S, N) ndarray
        State of the optimizer, as live as ``model.parameters`` and laid out like them.
    threads_used : int
        Threads that the last fit or step ran on.
    tile_rows : int
        Splits into micro-batches at multiples of this many rows change no bit of a gradient on the c backend: 1, or 32
        for networks of up to 8192 parameters and in bf16.

    Raises
    ------
    ArgumentError
        For an unknown name or a value outside its range, and for precision bf16 with a float64 model.
    BackendError
        When the backend is missing or cannot run the model; for precision bf16 also when it measures slower than
        float32 at the model's largest layer, which takes a few milliseconds once per shape.
    """

    @named_keywords
    def __init__(
        self,
        model: Sequential,
        loss: str | ops.Loss = "cross_entropy",
        optimizer: str | ops.Optimizer | None = None,
        metrics: str | Sequence[str] = (),
        *,
        backend: str = "auto",
        num_threads: int | None = None,
        precision: str = "float32",
        semantics: str = "torch",
        max_grad_norm: float | None = None,
        clip_value: float | None = None,
        gradient_accumulation_steps: int = 1,
        seed: int = 0,
    ) -> None:
        if not isinstance(model, Sequential):
            kinds = {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(model).__mro__}
            doors = {"torch.Module": "torch.from_torch", "keras.Model": "keras.from_keras"}
            hint = next((f"; fastbatch.{door} makes one of it" for kind, door in doors.items() if kind in kinds), "")
            raise ArgumentError(f"Trainer(model=): expected a Sequential or MLP, got {type(model).__name__}{hint}")
        self.model = model
        ops.check_semantics("Trainer", semantics)
        meant: dict[str, Any] = {} if semantics == "torch" else {"semantics": semantics}
        self.loss = replace(ops.get_loss(loss), **meant)
        self.optimizer = replace(ops.get_optimizer(optimizer), **meant)
        self.semantics = semantics
        self.metrics = ops.get_metrics(metrics, self.loss)
        self.num_threads = None if num_threads is None else checks.count("num_threads", num_threads)
        if precision not in PRECISIONS:
            raise unknown_name("Trainer(precision=)", precision, PRECISIONS)
        if precision == "bf16" and model.dtype != "float32":
            raise ArgumentError(f"Trainer(precision='bf16'): expected a float32 model, got dtype {model.dtype}")
        self.precision = precision
        self.max_grad_norm = checks.limit("Trainer(max_grad_norm=)", max_grad_norm)
        self.clip_value = checks.limit("Trainer(clip_value=)", clip_value)
        self.gradient_accumulation_steps = checks.count("gradient_accumulation_steps", gradient_accumulation_steps)
        self.seed = checks.seed("Trainer(seed=)", seed)
        checks.check_outputs(self.loss, model.output_size)
        self.epochs = 0
        self.history = History()
        self.stop_training = False
        self.lr_factor = 1.0
        self._input_scale: tuple[Array, Array] | None = None
        self._slots = memory.zeros((self.optimizer.slots, model.num_parameters), model.dtype)
        self.optimizer.begin(self._slots)
        self._steps = np.zeros(1, np.int64)
        self._gradient: Array | None = None  # what backward has added since the last update
        self._gradient_rows = 0
        self._noise: dict[str, Any] | None = None  # what a NoiseScale remembers of the epochs completed
        self._connect(backend)

    def _connect(self, backend: str) -> None:
        state = State(self.model.parameters, self._slots, self._steps, self.seed, self.model.buffers)
        self._plan = make_plan(
            self.model, self.loss, self.optimizer, self.precision, self.max_grad_norm, self.clip_value
        )
        check_derivatives(self._plan)
        self.backend, self._program = make_program(self._plan, state, backend, self.num_threads)
        self._busy = Exclusive(self._program.lock)
        self._forward_shape: tuple[int, int] | None = None
        self._fit: Fit | None = None  # the running fit, or the last one
        self._program.scale_inputs(*self._input_scale or (None, None))

    def __getstate__(self) -> dict:
        state = self.__dict__.copy()
        for name in ("_plan", "_program", "_busy", "_forward_shape", "_fit"):
            del state[name]
        return {**state, "_running": self._running}

    def __setstate__(self, state: dict) -> None:
        running = state["_running"]
        self.__dict__.update({name: value for name, value in state.items() if name != "_running"})
        # steps write to these, and joblib hands over arrays that are mapped read-only
        self._slots = memory.zeros(state["_slots"].shape, self.model.dtype)
        self._slots[...] = state["_slots"]
        self._steps = state["_steps"].copy()
        if self._gradient is not None:
            self._gradient = self._gradient.copy()
        self._connect(state["backend"])
        self._running = None if running is None else running.copy()

    def __setattr__(self, name: str, value: object) -> None:
        if name in FIXED and name in self.__dict__ and not (name == "optimizer" and self._differs_in_lr(value)):
            hint = " (trainer.retune takes other settings of the same rule)" if name == "optimizer" else ""
            own, got = ("a model" if isinstance(v, Sequential) else repr(v) for v in (getattr(self, name), value))
            raise ArgumentError(
                f"trainer.{name}: expected what the trainer was made with, {own}, got {got}; "
                f"make a new Trainer of the model{hint}"
            )
        super().__setattr__(name, value)

    def _differs_in_lr(self, value: object) -> bool:
        """Whether `value` is this optimizer but for its rate, which is read at every step."""
        own = self.optimizer
        return isinstance(value, type(own)) and replace(value, lr=own.lr) == own

    def __copy__(self) -> Trainer:
        return copy.deepcopy(self)  # a shallow copy would share the model and the counters under a lock of its own

    def __repr__(self) -> str:
        return f"Trainer({self.loss}, {self.optimizer}, backend={self.backend!r}, steps={self.steps})"

    @property
    def tile_rows(self) -> int:
        """Splits into micro-batches at multiples of this many rows change no bit."""
        return self._program.tile_rows

    @property
    def threads_used(self) -> int:
        """Threads that the last fit or step ran on."""
        return self._program.threads_used

    @property
    def lr_factor(self) -> float:
        return self._lr_factor

    @lr_factor.setter
    def lr_factor(self, value: float) -> None:
        self._lr_factor = checks.number("trainer.lr_factor", value)

    @property
    def input_scale(self) -> tuple[Array, Array] | None:
        return None if self._input_scale is None else (self._input_scale[0].copy(), self._input_scale[1].copy())

    @input_scale.setter
    def input_scale(self, value) -> None:
        with self._busy:
            self._scale(None if value is None else checks.as_scale(value, self.model.input_size, self.model.dtype))

    def _scale(self, value: tuple[Array, Array] | None) -> None:
        self._input_scale = value
        self._forward_shape = None
        self._program.scale_inputs(*value or (None, None))

    @named_keywords
    def fold_input_scale(self) -> None:
        """Move ``input_scale`` into the first layer's weights and bias: the model then takes x as it is.

        Outputs change by rounding only. The optimizer's state stays that of the weights before, so fold when training
        is over: before ``model.save``, ``model.predict`` or an export.

        Raises
        ------
        ArgumentError
            When the first layer is not Dense, or has no bias to take the shift. Nothing has been changed then.
        """
        with self._busy:
            if self._input_scale is None:
                return
            scale, shift = (part.astype(np.float64) for part in self._input_scale)
            first = self.model.layers[0]
            if not isinstance(first, Dense):
                raise ArgumentError(f"fold_input_scale: expected Dense as the first layer, got {first}")
            if not first.bias and shift.any():
                raise ArgumentError("fold_input_scale: expected a first layer with a bias to take the shift, got none")
            w, b = self.model.weights[0]
            if b is not None:
                b += (shift @ w).astype(b.dtype)
            w *= scale[:, None].astype(w.dtype)
            self._scale(None)

    @property
    def slots(self) -> Array:
        return self._slots

    @named_keywords
    def retune(self, optimizer: ops.Optimizer) -> None:
        """Go on with other settings of the optimizer, in the middle of training: its state and `steps` stay.

        Parameters
        ----------
        optimizer : Optimizer
            Of the same update rule: ``dataclasses.replace(trainer.optimizer, weight_decay=0.1)``. Every number may
            differ, `lr`, `groups` and `frozen`, too.

        Raises
        ------
        ArgumentError
            When its state would be another, or it names a layer that the model lacks. Nothing has been changed then.
        """
        with self._busy:
            if not isinstance(optimizer, ops.Optimizer):
                raise ArgumentError(f"retune: expected an Optimizer, got {type(optimizer).__name__}")
            if self.semantics != "torch":
                optimizer = replace(optimizer, semantics=self.semantics)
            if (optimizer.rule, optimizer.slots) != (self.optimizer.rule, self.optimizer.slots):
                raise ArgumentError(
                    f"retune: expected an optimizer with the state of {self.optimizer}, got {optimizer}; a new Trainer "
                    "begins with another"
                )
            plan = make_plan(self.model, self.loss, optimizer, self.precision, self.max_grad_norm, self.clip_value)
            self._program.retune(plan)
            self._plan, self._forward_shape = plan, None
            super().__setattr__("optimizer", optimizer)

    # -- whole fits ----------------------------------------------------------------------------------------------------

    @named_keywords
    def fit(
        self,
        X,
        y,
        batch_size: int | str | Grow | NoiseScale | Mapping[int, int | str] | Callable[[int], int] = 32,
        epochs: int = 1,
        *,
        validation_data: tuple | None = None,
        validation_split: float = 0.0,
        sample_weight=None,
        class_weight: dict[int, float] | str | None = None,
        shuffle: bool | Callable[[int], Array] = True,
        drop_last: bool = False,
        callbacks: Sequence[Callback] = (),
        verbose: int | str = "auto",
        micro_batch_size: int | None = None,
        check_finite: bool = True,
        max_steps: int | None = None,
        max_time: float | None = None,
        input_scale: tuple | str | None = None,
        sampling=None,
        augment: Augmentation | Sequence[Augmentation] = (),
    ) -> History:
        """Train for `epochs` passes over the rows; fit(2) and fit(2) again is fit(4) to the bit.

        Parameters
        ----------
        X : (n, I) array_like
            Any real or integer dtype, in any layout, also read-only or mapped from a file: gathered and converted batch
            by batch. Only another byte order, float128 and misaligned elements are converted as a whole.
        y : array_like
            Labels (n,), distributions (n, O), or values (n, O); (n,) and (n, 1) are the same where O = 1.
        batch_size : int, "full", "noise", Grow, NoiseScale, dict or callable, default 32
            Rows of a batch; the last one of an epoch takes what is left. :class:`fastbatch.batching.Grow`, sizes by the
            epoch from which they hold (``{0: 32, 10: 256}``), or a function of the epoch, asked as each one begins.
            These count the epochs of the trainer from 0, so that a second fit goes on with them.
            :class:`fastbatch.batching.NoiseScale` follows the noise of the gradients; "noise" is one with its defaults.
        epochs : int, default 1
        validation_data : (X, y) or (X, y, sample_weight), optional
        validation_split : float, default 0.0
            Share of the rows held out: random, and in equal proportion of every class for integer labels.
        sample_weight : (n,) array_like, optional
        class_weight : dict or "balanced", optional
            Row weight by label, in training and validation; a missing class counts 1. Multiplies sample_weight.
        shuffle : bool or callable, default True
            False visits the rows as they lie. A function gives an order of your own: ``f(epoch) -> (m,)`` indices of
            rows of X, as many as you like and in any order, for each epoch of the trainer, counted from 0.
        drop_last : bool, default False
            Leave out a last batch that is not full.
        callbacks : sequence of Callback
        verbose : {"auto", 0, 1, 2}, default "auto"
            1: bar and a line per epoch; 2: lines; 0: nothing; "auto": a bar where stderr is a terminal.
        micro_batch_size : int, optional
            Rows of an update that are worked on at a time; bounds memory and changes nothing else: no bit on the c
            backend at multiples of `tile_rows`, rounding elsewhere.
        check_finite : bool, default True
            Refuse NaN and Inf in X, y and the parameters before anything changes; one pass over the data.
        max_steps, max_time : int and float (seconds), optional
            End the fit behind the update that reaches the first of them, counted from the beginning of this fit. The
            epoch ends there, too: it is validated, has its entry in the history, and a further fit begins the next one.
            There is always one update; validation is not cut short.
        input_scale : (scale, shift) or "standardize", optional
            Train on ``x * scale + shift``, numbers or one per column; (1 / 255, 0) takes bytes to [0, 1]. "standardize"
            takes mean and standard deviation of the training rows, each counted once whatever its weight; a constant
            column becomes 0. Kept in the trainer's attribute of that name, which None leaves as it is.
        sampling : "balanced" or (n,) array_like, optional
            An epoch draws as many rows as there are, with replacement: "balanced" all classes as often, else in
            proportion to these weights, as torch's WeightedRandomSampler does. Nothing else sees them.
        augment : sequence of fastbatch.augment objects
            What is done to every batch as it is gathered: ``[fb.augment.Mixup(0.2), fb.augment.Noise(0.1)]``, each kind
            once, in this order however they are given.

        Returns
        -------
        History
            One entry per epoch: loss (weighted mean of the losses before each update), metrics, val_*, lr, batch_size,
            time, grad_norm with `max_grad_norm`, and noise_scale with NoiseScale, as the epoch began.

        Raises
        ------
        ShapeError, DTypeError, DataError, ArgumentError
            Before anything changes.
        DivergenceError
            When a loss or gradient is not finite; the failing update changes nothing.
        BusyError
            When another thread is using the trainer.
        KeyboardInterrupt
            Within about 50 ms or one step of Ctrl-C; the trainer stays valid and a further fit goes on.
        """
        with self._busy:
            settings = Settings(
                as_plain(batch_size), epochs, shuffle, drop_last, validation_split, class_weight, check_finite,
                micro_batch_size, max_steps, max_time, augment, sampling,
            )  # fmt: skip
            given = self.model, self.loss, self.seed, X, y, sample_weight, validation_data
            data = fit_data(*given, **settings.of_data, on_device=self.backend == "cuda")
            if self._fit is not None and self._fit.running:
                raise ArgumentError(
                    "fit: expected a fit that has ended, got one that is running: its callbacks may step"
                )
            hooks = hooks_of(callbacks, verbose)
            data.cumulative = sampling_of(self.model, self.loss, data, settings.sampling, settings.shuffle)
            if not (settings.sampling is None or isinstance(settings.sampling, str)):
                settings.sampling = np.array(settings.sampling, np.float64)  # a copy: resume asks again
            scale, before = scale_of(self.model, data, input_scale), self._input_scale
            kept = {"_fit": self._fit, "history": self.history, "stop_training": self.stop_training}
            trained = self.model.loss
            if scale is not None:
                self._scale(scale)
            self._fit = fit = Fit(settings)
            try:
                return fit.run(self, data, hooks)
            except FastbatchError as error:
                if not (
                    fit.updates or isinstance(error, DivergenceError)
                ):  # refused: by a callback, or a size of batches
                    self.__dict__.update(kept)
                    self.model.loss = trained
                    if scale is not None:
                        self._scale(before)
                raise

    @named_keywords
    def resume(
        self,
        X,
        y,
        *,
        validation_data: tuple | None = None,
        sample_weight=None,
        callbacks: Sequence[Callback] = (),
        verbose: int | str = "auto",
    ) -> History:
        """Go on with the last fit where it was interrupted, also in the middle of an epoch.

        It ends with the bits of a fit that nothing has interrupted: after Ctrl-C, an exception, ``stop_training``, or
        in a trainer that :meth:`load` has read, whose process may be long dead.

        Parameters
        ----------
        X, y, validation_data, sample_weight
            Those of the interrupted fit; shapes, dtypes and a sampled checksum are compared. Everything else that the
            fit was asked for is remembered.
        callbacks : sequence of Callback
            Those of the interrupted fit, made anew; they get their states. ProgressBar, CSVLogger, ModelCheckpoint,
            EMA and TensorBoard may be left out or added.
        verbose : {"auto", 0, 1, 2}, default "auto"
            As in :meth:`fit`.

        Returns
        -------
        History
            Of the whole fit. Where it has ended, this is all that happens: after its last epoch, or EarlyStopping.

        Raises
        ------
        ArgumentError
            Without a fit, after other updates since, and without a callback that had a state and steered the fit.
        DataError
            For other data than those of the interrupted fit.
        """
        with self._busy:
            if self._fit is None:
                raise ArgumentError("resume: expected a trainer with an interrupted fit, got one without any")
            if self._fit.finished:
                return self._fit.history
            settings = self._fit.settings
            given = self.model, self.loss, self.seed, X, y, sample_weight, validation_data
            data = fit_data(*given, **settings.of_data, on_device=self.backend == "cuda")
            data.cumulative = sampling_of(self.model, self.loss, data, settings.sampling, settings.shuffle)
            self._fit.check(self, data)
            return self._fit.run(self, data, hooks_of(callbacks, verbose))

    # -- files ---------------------------------------------------------------------------------------------------------

    @named_keywords
    def save(self, path: str | os.PathLike) -> None:
        """Write one safetensors file from which :meth:`load` makes a trainer that goes on to the bit.

        It holds the model, optimizer state, counters, what :meth:`backward` has added, history, and how far the last
        fit has come with what its callbacks remember; not the data. A callback may call it at any time, placed behind
        those whose states it shall hold. The file is written beside `path`, synced and renamed: `path` is the old file
        or the new one. :func:`fastbatch.load` reads the model out of it.

        Parameters
        ----------
        path : path

        Raises
        ------
        CheckpointError
            When a callback's state holds something else than numbers, strings, lists, dicts and arrays.
        OSError
            When the file cannot be written; the old one is untouched.
        """
        with self._busy:
            checkpoints.save(self, path)

    @classmethod
    @named_keywords
    def load(cls, path: str | os.PathLike, *, custom: Sequence[Callable] = ()) -> Trainer:
        """Read a trainer that :meth:`save` wrote; :meth:`resume` goes on with its fit.

        Parameters
        ----------
        path : path
        custom : sequence of functions and classes
            Those of your own that the trainer was made with, such as metrics. A file holds their names only.

        Returns
        -------
        Trainer

        Warns
        -----
        RuntimeWarning
            When this machine runs another backend or target than the one that wrote the file, or another version of
            fastbatch: the trainer goes on, but not to the bit.

        Raises
        ------
        CheckpointError
            When the file is damaged, is no trainer's, has a newer format version, or names something that `custom`
            lacks.
        BackendError
            For precision bf16 where it cannot run.
        FileNotFoundError
        """
        return checkpoints.load(cls, path, custom)

    # -- without training ----------------------------------------------------------------------------------------------

    @named_keywords
    def evaluate(self, X, y, sample_weight=None) -> dict:
        """Loss, the trainer's metrics and, for classification losses, accuracy; dropout is off, weights are honoured.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`.

        Returns
        -------
        dict
            ``{"loss": ..., "accuracy": ...}``; "confusion" is an array, everything else a float.

        Raises
        ------
        ShapeError, DTypeError, DataError, BusyError
        """
        with self._busy:
            data = data_of(self.model, self.loss, X, y, sample_weight, ("X", "y", "sample_weight"))
            return evaluate(self, data)

    @named_keywords
    def predict(self, X) -> Array:
        """Outputs of the last layer, on the trainer's backend and of scaled inputs; safe from many threads at once.

        Parameters
        ----------
        X : (n, I) array_like

        Returns
        -------
        (n, O) ndarray of the model's dtype

        Raises
        ------
        ShapeError, DTypeError
            When X is not a real (n, I) array.
        """
        outputs = self._program.fast_predict(X)
        if outputs is None and checks.is_foreign(X):
            outputs = self._program.fast_predict(checks.as_array(X, "X"))
        if outputs is not None:
            return outputs
        return predict_rows(self._program, inputs_of(self.model, X, "X", empty=True), self.model)
