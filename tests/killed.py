"""A run that test_checkpoints kills: ``killed.py FOLDER BACKEND EPOCHS`` begins it, or goes on from its checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

from helpers import make_data, make_trainer

import fastbatch as fb


def mean_output(y_true, y_pred) -> float:
    return float(y_pred.mean())


def run(folder: Path, backend: str, epochs: int, announce=None) -> fb.Trainer:
    """The run's trainer at its end; the file is ``folder / "state"``. `announce` is called behind every epoch."""
    path = folder / "state"
    x, y = make_data("cross_entropy", 90, seed=3)
    y[::5] = (y[::5] + 1) % 4  # labels that cannot be learned, so that the validation gets worse in time
    hooks = [
        fb.EarlyStopping(patience=epochs // 2),
        fb.ReduceLROnPlateau(patience=3, factor=0.7),
        fb.EMA(0.9, every_n_steps=2),
        fb.CSVLogger(folder / "log.csv"),
        fb.ModelCheckpoint(path, every_n_steps=3),
    ]
    if announce is not None:
        hooks.append(fb.LambdaCallback(on_epoch_end=lambda epoch, logs: announce()))
    if path.exists():
        trainer = fb.Trainer.load(path, custom=[mean_output])
        trainer.resume(x, y, callbacks=hooks)
    else:
        rate = fb.schedules.Warmup(20, fb.schedules.Cosine(0.03, 5 * epochs))
        trainer = make_trainer(
            "cross_entropy", fb.AdamW(lr=rate), dropout=0.2, metrics=["accuracy", "confusion", mean_output],
            backend=backend, seed=5,
        )  # fmt: skip
        trainer.fit(x, y, 16, epochs, validation_split=0.2, class_weight="balanced", callbacks=hooks)
    trainer.average = hooks[2].parameters
    return trainer


if __name__ == "__main__":
    end = run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), lambda: print("epoch", flush=True))
    end.save(Path(sys.argv[1]) / "end")
    end.average.tofile(Path(sys.argv[1]) / "average")
