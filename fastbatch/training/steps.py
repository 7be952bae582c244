"""The methods of a trainer that work on the rows of one call: a step, or the pieces it is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from .. import checks, ops
from ..backends import get as get_backend
from ..errors import ArgumentError, DivergenceError, ShapeError, named_keywords
from ..model import Sequential
from ..plan import Plan, check_micro_batch
from ..program import gradient_norms
from ..protocol import Device, Feed, Program, Sums
from .door import Data, Exclusive, data_of, inputs_of

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Steps"]

Array = np.ndarray


class Steps:
    """Base of :class:`fastbatch.Trainer`, which makes all of this."""

    model: Sequential
    loss: ops.Loss
    optimizer: ops.Optimizer
    backend: str
    _lr_factor: float
    _plan: Plan
    _program: Program
    _busy: Exclusive
    _steps: Array
    _gradient: Array | None  # what backward has added since the last update
    _gradient_rows: int
    _forward_shape: tuple[int, int] | None

    @property
    def steps(self) -> int:
        return self._steps.item()

    @property
    def _running(self) -> Array | None:
        """Statistics that wait, with the gradient, for :meth:`update`."""
        return self._program.running

    @_running.setter
    def _running(self, value: Array | None) -> None:
        self._program.running = value

    @property
    def _device(self) -> Device | None:
        """Where arguments may lie instead of the CPU's memory."""
        return cast("Device", get_backend("cuda")) if self.backend == "cuda" else None

    def _rate(self, t: int) -> float:
        """Learning rate of update `t`, counted from 0."""
        return self._lr_factor * self.optimizer.rate(t)

    def _data(self, x, y, weight=None, names: tuple[str, str, str] = ("x", "y", "sample_weight")) -> Data:
        return data_of(self.model, self.loss, x, y, weight, names)

    @named_keywords
    def step(self, x, y, sample_weight=None) -> float:
        """One fused forward, backward and update on the rows given; bit for bit what fit does with the same rows.

        Parameters
        ----------
        x : (B, I) array_like
        y : array_like
            As in :meth:`fit`.
        sample_weight : (B,) array_like, optional

        Returns
        -------
        float
            The loss before the update.

        Raises
        ------
        ShapeError, DTypeError, DataError, DivergenceError, BusyError
            Nothing has been changed then.
        BackendError
            In bf16 for rows so few that float32 measures faster; nothing has been changed.
        """
        if sample_weight is None and self.model.loss is self.loss:  # the first step takes the careful path, and sets it
            lr = self.optimizer.lr  # looked at here, so that a plain number does not pay for a call
            rate = self._lr_factor * lr if type(lr) is float else self._rate(self.steps)
            loss = self._program.fast_step(x, y, rate)
            if loss is None and checks.is_foreign(x):
                loss = self._program.fast_step(checks.as_array(x, "x"), checks.as_array(y, "y"), rate)
            if loss is not None:
                return loss
        with self._busy:
            data = data_of(self.model, self.loss, x, y, sample_weight, device=self._device)
            self._program.admit(len(data.x))
            feed = Feed(data.x, data.y, data.weight, batch=len(data.x))
            self.model.loss = self.loss
            self._forward_shape = None
            sums = Sums()
            try:
                self._program.run(feed, 0, 1, np.array([self._rate(self.steps)]), 0.0, sums)
            except DivergenceError:
                # looked at only now, so that a healthy step does not pay for it
                checks.check_finite(data.x, "x", x, self.model.dtype)
                checks.check_finite(data.y, "y", y)
                raise
            return sums.mean()

    @named_keywords
    def partial_fit(self, x, y, sample_weight=None) -> Self:
        """One :meth:`step`, scikit-learn style.

        Parameters
        ----------
        x, y, sample_weight
            As in :meth:`step`, which raises the same.

        Returns
        -------
        Trainer
            Itself.
        """
        self.step(x, y, sample_weight)
        return self

    @named_keywords
    def gradients(self, x, y, sample_weight=None, micro_batch_size: int | None = None) -> tuple[float, Array]:
        """Loss and flat gradient (N,), laid out like ``model.parameters``; nothing changes.

        Parameters
        ----------
        x, y, sample_weight
            As in :meth:`step`.
        micro_batch_size : int, optional
            Rows per pass; bounds memory and changes nothing else: no bit of the result on the c backend (in bf16 at
            multiples of ``tile_rows``), rounding on the reference. Dropout draws what the next update would. With a
            BatchNorm it must hold whole ghost batches.

        Returns
        -------
        loss : float
        gradient : (N,) ndarray of the model's dtype

        Raises
        ------
        ArgumentError
            For a micro_batch_size < 1, or one that cuts a ghost batch.
        ShapeError, DTypeError, DataError, BusyError
        """
        with self._busy:
            data = self._data(x, y, sample_weight)
            rows = len(data.x)
            size = rows if micro_batch_size is None else checks.count("micro_batch_size", micro_batch_size)
            check_micro_batch(self._plan, size, rows)
            gradient = np.zeros(self.model.num_parameters, self.model.dtype)
            self._forward_shape = None
            total = Sums()
            for start in range(0, rows, size):
                part = data.take(slice(start, start + size))
                feed = Feed(part.x, part.y, part.weight, batch=size)
                total = self._program.accumulate(feed, start, gradient, total)
            gradient *= gradient.dtype.type(1 / total.weight if total.weight else 0)
            return total.mean(), gradient

    @named_keywords
    def gradient_norms(self, x, y) -> Array:
        """Euclidean norm of each sample's own loss gradient over all parameters; nothing changes.

        Element i is the norm of ``gradients(x[i:i+1], y[i:i+1])[1]``, but for dropout, which draws for each row what
        the next update on `x` would. No gradient is formed: that of a dense layer is the outer product of its input x
        and its delta dz, so ``norm^2 = sum over the dense layers of |dz|^2 (|x|^2 + 1)``, without the 1 where the layer
        has no bias, and of what the row adds to gamma and beta of each LayerNorm [1]_. Costs two thirds of
        :meth:`gradients`.

        Parameters
        ----------
        x, y
            As in :meth:`step`.

        Returns
        -------
        (B,) ndarray of float64
            Summed in float64, from inputs and deltas of the model's dtype. No bit depends on the number of threads, or
            on the c backend, dropout aside, on the rows beside a row.

        Raises
        ------
        ArgumentError
            With a BatchNorm: rows depend on each other there, and have no gradients of their own.
        ShapeError, DTypeError, DataError, BusyError

        References
        ----------
        .. [1] I. Goodfellow, "Efficient per-example gradient computations", 2015, arXiv:1510.01799.
        """
        if self.model.buffers.size:
            raise ArgumentError(
                "gradient_norms: expected a model without BatchNorm, in which rows have no gradients of their own"
            )
        with self._busy:
            data = self._data(x, y)
            self._forward_shape = None
            return gradient_norms(
                self._program,
                Feed(data.x, data.y, data.weight, batch=len(data.x)),
                [b is not None for _, b in self.model.weights],
            )

    @named_keywords
    def forward(self, x, training: bool = True) -> Array:
        """Outputs for a loss computed elsewhere.

        Parameters
        ----------
        x : (B, I) array_like
        training : bool, default True
            Dropout is on, drawn as the next update would, and :meth:`backward` may follow.

        Returns
        -------
        (B, O) ndarray of the model's dtype

        Raises
        ------
        ShapeError, DTypeError, ArgumentError, BusyError
        """
        with self._busy:
            inputs = inputs_of(self.model, x)
            if checks.flag("training", training):
                inputs = inputs.copy()  # backward reads it again, and the caller may have refilled his buffer by then
            outputs = self._program.forward(inputs, self._gradient_rows, training)
            self._forward_shape = outputs.shape if training else None
            return outputs

    @named_keywords
    def backward(self, dz) -> None:
        """Add the gradient of the parameters for that of the outputs; gradients add up until :meth:`update`.

        Parameters
        ----------
        dz : (B, O) array_like
            Gradient of the loss with respect to the outputs of the last :meth:`forward`. Used as given: divide it by B
            for a mean.

        Raises
        ------
        ArgumentError
            Without a ``forward(x, training=True)`` before it.
        ShapeError, DTypeError, DataError, BusyError
        """
        with self._busy:
            if self._forward_shape is None:
                raise ArgumentError("backward: expected a forward(x, training=True) right before it, got none")
            dz = checks.as_inputs(dz, self.model.output_size, self.model.dtype, "dz")
            if dz.shape != self._forward_shape:
                raise ShapeError(f"dz: expected shape {self._forward_shape} as forward returned, got {dz.shape}")
            checks.check_finite(dz, "dz")
            if self._gradient is None:
                self._gradient = np.zeros(self.model.num_parameters, self.model.dtype)
            rows, self._forward_shape = self._forward_shape[0], None
            try:
                self._program.backward(dz, self._gradient)
                self._gradient_rows += rows
            except KeyboardInterrupt:  # perhaps half added: the sum is dropped with its row count
                self._gradient, self._gradient_rows = None, 0
                raise

    @named_keywords
    def update(self) -> None:
        """One optimizer update from what :meth:`backward` has added since the last one.

        Raises
        ------
        ArgumentError
            Without a backward before it.
        DivergenceError
            When the gradient is not finite; parameters keep their values and the gradient is dropped.
        BusyError
        """
        with self._busy:
            if self._gradient is None or self._gradient_rows == 0:
                raise ArgumentError("update: expected a backward(dz) before it, got none")
            gradient, self._gradient, self._gradient_rows = self._gradient, None, 0
            self._forward_shape = None
            self.model.loss = self.loss
            self._program.update(gradient, 1.0, self._rate(self.steps))
