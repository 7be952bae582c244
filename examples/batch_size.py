"""The same model twice: batch 32 for 10 epochs and batch 128 for 5 epochs, from the same weights at the same rate."""

import numpy as np
from sklearn.datasets import load_digits

import fastbatch as fb

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
order = np.random.default_rng(0).permutation(len(X))
train, test = order[:1400], order[1400:]

start = fb.MLP([64, 128, 10], activation="relu", seed=0)

updates, loss, accuracy = {}, {}, {}
print("batch  epochs  updates  time (ms)  training loss  test accuracy")
for batch, epochs in ((32, 10), (128, 5)):
    trainer = fb.Trainer(start.copy(), loss="cross_entropy", optimizer=fb.Adam(lr=2e-3))
    history = trainer.fit(X[train], y[train], batch_size=batch, epochs=epochs, verbose=0)
    updates[batch] = trainer.steps
    # history["loss"] is averaged while the weights move; both runs are compared at their final weights
    loss[batch] = trainer.evaluate(X[train], y[train])["loss"]
    accuracy[batch] = trainer.evaluate(X[test], y[test])["accuracy"]
    milliseconds = 1e3 * sum(history["time"])
    print(
        f"{batch:5d}{epochs:8d}{updates[batch]:9d}{milliseconds:11.1f}{loss[batch]:15.4f}{accuracy[batch]:15.3f}",
    )

assert updates == {32: 440, 128: 55}
# both learn: chance is ln 10 = 2.30 and an accuracy of 0.1
assert max(loss.values()) < 1.0
assert min(accuracy.values()) > 0.8
# at a fixed rate an epoch in small batches moves the weights further: more updates, lower loss
assert loss[32] < loss[128] / 2
