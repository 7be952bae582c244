"""What a fit leaves behind: one list per quantity, one entry per epoch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BackendError, named_keywords
from .monitor import better

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["History"]

# What the fit chose rather than measured: behind the others, and only where it changes
_SETTINGS = ("lr", "batch_size")
_MOST_COLUMNS = 4
_WIDE = ("grad_norm", "noise_scale")
# One of these, or a loss, that runs through more than this factor is drawn on a logarithmic axis
_DECADES = 20


class History(dict[str, list]):
    """A dict of lists, one entry per epoch: loss, val_loss, metrics, lr (of the last update), batch_size, time (s).

    Entries are numbers, those of the metric "confusion" arrays.
    """

    def append(self, logs: dict[str, Any]) -> None:
        """Add one epoch.

        Parameters
        ----------
        logs : dict of str to value
        """
        for name, value in logs.items():
            self.setdefault(name, []).append(value)

    def to_pandas(self) -> pandas.DataFrame:
        """As a table.

        Returns
        -------
        pandas.DataFrame
            One row per epoch, index "epoch" from 1.

        Raises
        ------
        BackendError
            Without pandas.
        """
        try:
            import pandas
        except ImportError as error:
            raise BackendError(f"History.to_pandas needs pandas: pip install pandas ({error})") from error
        frame = pandas.DataFrame(dict(self))
        frame.index = pandas.RangeIndex(1, len(frame) + 1, name="epoch")
        return frame

    def _curves(self) -> list[str]:
        """Names whose entries are numbers, one each epoch."""
        return [name for name, values in self.items() if values and all(np.ndim(value) == 0 for value in values)]

    def summary(self) -> str:
        """What ``print(history)`` shows.

        Returns
        -------
        str
            A line per quantity: its value in the first, the last and the best epoch, and which that was.
        """
        epochs = max(map(len, self.values()), default=0)
        seconds = sum(self.get("time", []))
        text = [f"{epochs} epoch{'s' * (epochs != 1)}" + (f", {seconds:.3g} s" if epochs and "time" in self else "")]
        names = [name for name in self._curves() if name != "time"]
        if not names:
            return text[0]
        wide = max(map(len, names))
        text.append(f"{'':<{wide}}{'first':>12}{'last':>12}{'best':>12}{'at epoch':>10}")
        for name in names:
            values = np.array(self[name], np.float64)
            line = f"{name:<{wide}}{values[0]:>12.5g}{values[-1]:>12.5g}"
            mode = better(name)
            if mode is not None and not np.isnan(values).all():
                best = int(np.nanargmin(values) if mode == "min" else np.nanargmax(values))
                line += f"{values[best]:>12.5g}{best + 1:>10}"
            text.append(line)
        return "\n".join(text)

    __str__ = summary

    @named_keywords
    def plot(self, path: str | os.PathLike | None = None) -> Figure:
        """Learning curves: a panel for the loss and for each other number, training and validation together.

        The learning rate and the batch size have one where they change, the time of the epochs has none.

        Parameters
        ----------
        path : path, optional
            Where to write the picture; the ending chooses the format.

        Returns
        -------
        matplotlib.figure.Figure
            Drawn without pyplot, so no window opens and no global state changes.

        Raises
        ------
        BackendError
            Without matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise BackendError(f"History.plot needs matplotlib: pip install 'fastbatch[plot]' ({error})") from error
        curves = self._curves()
        names = list(dict.fromkeys(name.removeprefix("val_") for name in curves if name != "time"))
        constant = {name for name in _SETTINGS if len(set(self.get(name, []))) < 2}
        names = sorted((name for name in names if name not in constant), key=lambda name: name in _SETTINGS)
        rows = max(1, -(-len(names) // _MOST_COLUMNS))
        columns = max(1, -(-len(names) // rows))
        figure = Figure(figsize=(4 * columns, 3.2 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, name in zip(panels, names):
            self._draw(axes, name)
        for axes in panels[len(names) :]:
            axes.remove()
        if path is not None:
            figure.savefig(Path(path), dpi=150)
        return figure

    def _draw(self, axes: Axes, name: str) -> None:
        from matplotlib.ticker import MaxNLocator

        lines = [("training", name, "-"), ("validation", f"val_{name}", "--")]
        lines = [(label, key, style) for label, key, style in lines if key in self]
        for label, key, style in lines:
            epochs = range(1, len(self[key]) + 1)
            marker = "o" if len(epochs) == 1 else None  # of a single epoch there is no line to see
            shape = "steps-mid" if name == "batch_size" else "default"
            axes.plot(epochs, self[key], style, label=label, linewidth=1.6, marker=marker, drawstyle=shape)
        values = np.array([value for _, key, _ in lines for value in self[key]], np.float64)
        values = values[np.isfinite(values)]
        wide = better(name) == "min" or name in _WIDE
        if wide and values.size and values.min() > 0 and values.max() > _DECADES * values.min():
            axes.set_yscale("log")
        axes.set(xlabel="epoch", ylabel=name.replace("_", " "))
        epochs = range(1, 1 + max(len(self[key]) for _, key, _ in lines))
        axes.set_xlim((1, len(epochs)) if len(epochs) > 1 else (0.5, 1.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(frameon=False)
