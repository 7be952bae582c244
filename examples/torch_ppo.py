"""A loss of your own: PPO on a cart with a pole, its loss and the loss's gradient by torch, the networks by fastbatch.

``trainer.forward`` gives the outputs, torch differentiates whatever you compute from them, ``trainer.backward`` takes
the gradient with respect to the outputs, ``trainer.update`` makes the step. Schulman et al. 2017, arXiv:1707.06347.
"""

import numpy as np
import torch

import fastbatch as fb

CARTS, STEPS, ROUNDS, PASSES, BATCH = 16, 128, 30, 4, 256
GAMMA, LAMBDA, CLIP = 0.99, 0.95, 0.2

torch.set_num_threads(1)
rng = np.random.default_rng(0)
policy = fb.Trainer(fb.MLP([4, 64, 64, 2], activation="tanh", seed=1), optimizer=fb.Adam(lr=2e-3), max_grad_norm=0.5)
critic = fb.Trainer(fb.MLP([4, 64, 64, 1], activation="tanh", seed=2), "mse", fb.Adam(lr=2e-3))


def push(state, right):
    """One fiftieth of a second of carts (position, speed, angle, its speed), pushed left or right; and who fell."""
    x, v, angle, turn = state.T
    force, sin, cos = np.where(right, 10.0, -10.0), np.sin(angle), np.cos(angle)
    pull = (force + 0.05 * turn**2 * sin) / 1.1
    bend = (9.8 * sin - cos * pull) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
    drive = pull - 0.05 * bend * cos / 1.1
    after = np.stack([x + 0.02 * v, v + 0.02 * drive, angle + 0.02 * turn, turn + 0.02 * bend], axis=1)
    return after.astype(np.float32), (np.abs(after[:, 0]) > 2.4) | (np.abs(after[:, 2]) > 0.21)


def start(carts):
    return rng.uniform(-0.05, 0.05, (carts, 4)).astype(np.float32)


state, age, lengths = start(CARTS), np.zeros(CARTS, int), []
for _ in range(ROUNDS):
    rows = []
    for _ in range(STEPS):
        logits = policy.predict(state)
        right = rng.random(CARTS) < 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
        after, fell = push(state, right)
        age += 1
        done = fell | (age >= 500)
        value, then = critic.predict(state)[:, 0], critic.predict(after)[:, 0]
        rows.append((state, right.astype(np.int64), value, np.where(fell, 0, then), done))
        lengths += age[done].tolist()
        age[done] = 0
        state = np.where(done[:, None], start(CARTS), after)
    advantage, ahead = np.zeros((STEPS, CARTS), np.float32), np.zeros(CARTS)
    for t in reversed(range(STEPS)):
        _, _, value, then, done = rows[t]
        ahead = 1 + GAMMA * then - value + GAMMA * LAMBDA * np.where(done, 0, ahead)
        advantage[t] = ahead
    seen, chosen, value = (np.concatenate([row[k] for row in rows]) for k in range(3))
    advantage = advantage.ravel()
    goal = advantage + value
    advantage = (advantage - advantage.mean()) / advantage.std()
    with torch.no_grad():
        old = torch.from_numpy(policy.predict(seen)).log_softmax(1)[np.arange(len(seen)), chosen]
    for _ in range(PASSES):
        for batch in rng.permutation(len(seen)).reshape(-1, BATCH):
            logits = torch.from_numpy(policy.forward(seen[batch])).requires_grad_()
            log = logits.log_softmax(1)
            ratio = (log[np.arange(BATCH), chosen[batch]] - old[batch]).exp()
            gain = torch.from_numpy(advantage[batch])
            surrogate = torch.minimum(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain)
            entropy = -(log.exp() * log).sum(1)
            (-(surrogate + 0.01 * entropy).mean()).backward()
            policy.backward(logits.grad)  # already divided by BATCH, as the mean is
            policy.update()
            critic.step(seen[batch], goal[batch])

first, last = (float(np.mean(part)) for part in (lengths[:50], lengths[-50:]))
print(f"{policy.steps} updates; a pole stands for {first:.0f} steps at first, {last:.0f} in the end")
assert last > 5 * first
