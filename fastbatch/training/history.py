"""What a fit leaves behind: one list per quantity, one entry per epoch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import named_keywords

if TYPE_CHECKING:
    import pandas

__all__ = ["History"]


class History(dict[str, list]):
    """A dict of lists, one entry per epoch: loss, val_loss, metrics, lr, batch_size, time (seconds).

    Entries are numbers, those of the metric "confusion" arrays.
    """

    def append(self, logs: dict[str, float]) -> None:
        """Add one epoch."""
        for name, value in logs.items():
            self.setdefault(name, []).append(value)

    def to_pandas(self) -> pandas.DataFrame:
        """One row per epoch, index "epoch" from 1. Needs pandas."""
        import pandas

        frame = pandas.DataFrame(dict(self))
        frame.index = pandas.RangeIndex(1, len(frame) + 1, name="epoch")
        return frame

    @named_keywords
    def plot(self, path: str | os.PathLike | None = None):
        """Learning curves: one panel for the loss and one for each metric that is a number.

        Training and validation share a panel.

        Parameters
        ----------
        path : path, optional
            Where to write the picture; the ending chooses the format.

        Returns
        -------
        matplotlib.figure.Figure
            Drawn without pyplot, so no window opens and no global state changes.
        """
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        apart = {"lr", "batch_size", "time"}
        names = [
            name for name in self if name not in apart and not name.startswith("val_") and np.ndim(self[name]) == 1
        ]
        figure = Figure(figsize=(4.8 * max(1, len(names)), 3.4), layout="constrained")
        for axes, name in zip(figure.subplots(1, max(1, len(names)), squeeze=False)[0], names):
            for key, label, style in ((name, "training", "-"), (f"val_{name}", "validation", "--")):
                if key in self:
                    axes.plot(range(1, len(self[key]) + 1), self[key], style, label=label, linewidth=1.6)
            values = self[name] + self.get(f"val_{name}", [])
            if name == "loss" and values and min(values) > 0 and max(values) > 20 * min(values):
                axes.set_yscale("log")
            axes.set(xlabel="epoch", ylabel=name.replace("_", " "))
            axes.set_xlim(1, max(2, len(self[name])))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
        if path is not None:
            figure.savefig(Path(path), dpi=150)
        return figure
