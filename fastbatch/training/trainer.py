"""The trainer: a model, a loss, an optimizer and their state, and the methods that move them."""

from __future__ import annotations

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
from ..model import Sequential
from ..program import predict_rows
from . import checkpoints
from .attributes import Attributes
from .callbacks import Callback
from .door import data_of, fit_data, hooks_of, inputs_of, sampling_of, scale_of
from .evaluation import evaluate
from .fit import Fit, Settings
from .history import History

__all__ = ["Trainer"]

Array = np.ndarray

PRECISIONS = ("float32", "bf16")


class Trainer(Attributes):
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
        "bf16" multiplies in bfloat16, for large float32 models on CPUs and GPUs where that is faster, in `fit` as in
        `predict` and `evaluate` of the trainer: operands of products are rounded to 8 bits, sums, weights, optimizer
        state and everything else stay float32. On a CPU batches below some 8 to 16 rows are refused where they measure
        slower.
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
        for what is no finite number >= 0, and where the rate would be more than float32 holds.
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
            by batch. Only another byte order, float128 and misaligned elements are converted as a whole. With backend
            "cuda" X, y and weights may lie in the device's memory (docs/backends.md).
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
        BackendError
            In bf16 for batches, or micro-batches, so small that float32 measures faster; before anything changes.
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
            data = fit_data(*given, **settings.of_data, device=self._device)
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
            data = fit_data(*given, **settings.of_data, device=self._device)
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
            data = data_of(self.model, self.loss, X, y, sample_weight, ("X", "y", "sample_weight"), self._device)
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
        return predict_rows(self._program, inputs_of(self.model, X, "X", True, self._device), self.model)
