"""Two ends of the batch-size scale on one problem: a tanh network learns sin(3 x) from noisy samples.

Full batch: 200 samples, all of them in every update, 1000 epochs. Online: 10 samples arrive before every update.
"""

import numpy as np

import fastbatch as fb

NOISE = 0.1

rng = np.random.default_rng(0)
grid = np.linspace(-1, 1, 201, dtype=np.float32)[:, None]
truth = np.sin(3 * grid)


def samples(count):
    x = rng.uniform(-1, 1, (count, 1)).astype(np.float32)
    return x, (np.sin(3 * x) + NOISE * rng.standard_normal((count, 1))).astype(np.float32)


def error(model):
    """Root mean square distance from the function without noise."""
    return float(np.sqrt(np.mean((model.predict(grid) - truth) ** 2)))


def network():
    return fb.MLP([1, 32, 1], activation="tanh", seed=0)


# full batch: one update per epoch
X, y = samples(200)
full = fb.Trainer(network(), loss="mse", optimizer=fb.Adam(lr=1e-2))
before = error(full.model)
history = full.fit(X, y, batch_size="full", epochs=1000, verbose=0)
print(
    f"full batch  {full.steps} updates on {len(X)} samples: loss {history['loss'][0]:.4f} -> {history['loss'][-1]:.4f}"
)
print(f"            error {before:.4f} -> {error(full.model):.4f}, noise of a sample {NOISE}")

# online: every update sees all samples that have arrived so far, because the early ones are still true; training on
# the 10 new ones alone would be ordinary mini-batches. The batch grows by 10 a step and the trainer just takes it.
online = fb.Trainer(network(), loss="mse", optimizer=fb.Adam(lr=2e-2))
stream_x, stream_y = np.empty((0, 1), np.float32), np.empty((0, 1), np.float32)
for step in range(1, 301):
    new_x, new_y = samples(10)
    stream_x, stream_y = np.concatenate([stream_x, new_x]), np.concatenate([stream_y, new_y])
    loss = online.step(stream_x, stream_y)
    if step in (1, 10, 30, 100, 300):
        print(
            f"online      step {step:3d}, {len(stream_x):4d} samples: loss {loss:.4f}, error {error(online.model):.4f}"
        )

assert full.steps == 1000
assert history["loss"][-1] < history["loss"][0] / 20
# 200 samples average the noise out: the curve is nearer to the truth than a sample is
assert error(full.model) < NOISE / 2
assert online.steps == 300
assert len(stream_x) == 3000
assert error(online.model) < NOISE
