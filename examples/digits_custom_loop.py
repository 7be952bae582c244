"""An image classifier trained by a loop of your own: shuffle, cut batches, ``trainer.step``.

Handwritten digits, 1,797 real 8x8 images that scikit-learn ships; batch 32, 10 epochs.
"""

import numpy as np
from sklearn.datasets import load_digits

import fastbatch as fb

BATCH, EPOCHS = 32, 10

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)

rng = np.random.default_rng(0)
order = rng.permutation(len(X))
train, test = order[:1400], order[1400:]

model = fb.MLP([64, 128, 10], activation="relu", seed=0)
trainer = fb.Trainer(model, loss="cross_entropy", optimizer=fb.Adam(lr=3e-3))

for epoch in range(EPOCHS):
    rng.shuffle(train)
    total = 0.0
    for start in range(0, len(train), BATCH):
        rows = train[start : start + BATCH]
        total += trainer.step(X[rows], y[rows]) * len(rows)
    print(f"epoch {epoch + 1:2d}/{EPOCHS}  loss {total / len(train):.4f}")

result = trainer.evaluate(X[test], y[test])
print(f"{trainer.steps} updates; {len(test)} test images: loss {result['loss']:.4f}, accuracy {result['accuracy']:.3f}")

assert trainer.steps == EPOCHS * -(-len(train) // BATCH)
assert result["accuracy"] >= 0.95
