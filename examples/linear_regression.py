"""y = w x + b by mini-batch SGD, next to the closed-form least-squares answer."""

import numpy as np

import fastbatch as fb

ROWS, NOISE = 1000, 0.5
LR, BATCH, EPOCHS = 0.01, 32, 100

rng = np.random.default_rng(0)
x = rng.standard_normal(ROWS)
y = 3.0 * x - 2.0 + NOISE * rng.standard_normal(ROWS)

(w_exact, b_exact), *_ = np.linalg.lstsq(np.stack([x, np.ones(ROWS)], axis=1), y)

model = fb.MLP([1, 1], seed=0)
trainer = fb.Trainer(model, loss="mse", optimizer=fb.SGD(lr=LR))
history = trainer.fit(x[:, None], y, batch_size=BATCH, epochs=EPOCHS, verbose=0)

w, b = (value.item() for value in model.weights[0])
print("                    w         b")
print(f"least squares  {w_exact:8.4f}  {b_exact:8.4f}")
print(f"SGD            {w:8.4f}  {b:8.4f}    {trainer.steps} updates, loss {history['loss'][-1]:.4f}")

# SGD at a fixed rate never settles: it hovers around the answer. With gradient noise of variance C per parameter and
# curvature H the variance is LR * C / (2 H); here C = 4 NOISE^2 / BATCH and H = 2 E[x^2] = 2. Four standard deviations.
tolerance = 4 * NOISE * np.sqrt(LR / BATCH)
print(f"differences    {w - w_exact:8.4f}  {b - b_exact:8.4f}    tolerance {tolerance:.4f}")

assert abs(w - w_exact) < tolerance
assert abs(b - b_exact) < tolerance
