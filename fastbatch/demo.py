"""The demo: handwritten digits, 1,797 real 8x8 images that scikit-learn ships, to a test accuracy in a few seconds."""

from __future__ import annotations

import os

import numpy as np

from .checks import count
from .errors import ArgumentError, BackendError
from .info import info
from .layers import Dense, Dropout
from .model import Sequential
from .ops.optimizers import AdamW
from .picture import check_picture
from .training import Trainer

__all__ = ["demo"]


def _digits(seed: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Training and test part (a fifth), pixels scaled to [0, 1]."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, stratify=y, random_state=seed)
    return (X_train, y_train), (X_test, y_test)


def _check(out: str | os.PathLike, epochs: int, seed: int) -> None:
    """Everything that could fail after the training has been waited for."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise BackendError(f"the demo needs scikit-learn: pip install 'fastbatch[demo]' ({error})") from error
    count("epochs", epochs)
    if not 0 <= seed < 2**32:
        raise ArgumentError(f"seed: expected an integer in [0, 2**32), got {seed}")
    check_picture("out", out, "demo")


def demo(out: str | os.PathLike = "fastbatch_demo.png", epochs: int = 60, seed: int = 0) -> float:
    """Train, print, plot; returns the test accuracy, and its last line on stdout is ``test accuracy: 0.xxx``."""
    _check(out, epochs, seed)
    (X, y), (X_test, y_test) = _digits(seed)
    model = Sequential(
        [
            Dropout(0.1),
            Dense(256, activation="relu"),
            Dropout(0.4),
            Dense(128, activation="relu"),
            Dropout(0.4),
            Dense(10),
        ],
        input_size=64,
        seed=seed,
    )
    trainer = Trainer(model, "cross_entropy", AdamW(lr=1e-3), metrics=["accuracy"], seed=seed)
    about = info()
    print(f"digits: {len(X)} images to train on, {len(X_test)} to test on")
    print(model.summary())
    history = trainer.fit(X, y, batch_size=64, epochs=epochs, validation_split=0.1, verbose=1)
    history.plot(out)
    steps, seconds = trainer.steps, sum(history["time"])
    print(f"{steps} updates in {seconds:.2f} s, {1e6 * seconds / steps:.1f} us each, validation included")
    print(f"learning curve: {out}")
    target = f", target {about['target']}" if trainer.backend == "c" else ""
    print(f"backend {trainer.backend}{target}, {trainer.threads_used} thread(s) of up to {about['num_threads']}")
    accuracy = trainer.evaluate(X_test, y_test)["accuracy"]
    print(f"test accuracy: {accuracy:.3f}")
    return accuracy
