"""FASTBATCH_TARGET in a process of its own: what `info` says is what runs, told by its bits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

try:
    from fastbatch import _native
    from fastbatch.backends import native
except ImportError:
    pytest.skip("the c backend is not built", allow_module_level=True)

TARGETS = [name for name, usable in _native.targets().items() if usable]

# tanh and a loss sum over lanes; widths that no vector divides
CODE = """
import hashlib
import numpy as np
import fastbatch as fb

def bits():
    r = np.random.default_rng(0)
    x, y = r.standard_normal((50, 37)).astype(np.float32), r.standard_normal((50, 3)).astype(np.float32)
    found = []
    for norm in ([], [fb.LayerNorm()]):
        layers = [fb.Dense(45), *norm, fb.Activation("tanh"), fb.Dense(3)]
        trainer = fb.Trainer(fb.Sequential(layers, input_size=37), "mse", fb.Adam(1e-2), backend="c", max_grad_norm=0.1)
        trainer.fit(x, y, batch_size=10, epochs=3, verbose=0)
        found.append(trainer.model.parameters.tobytes())
    return hashlib.sha256(b"".join(found)).hexdigest()
"""


def in_a_process(**environment: str) -> tuple[list[str], str]:
    """What `info`, the backend and a program say is chosen, and the digest of what it trains."""
    code = CODE + (
        "from fastbatch.backends import get\n"
        "trainer = fb.Trainer(fb.MLP([3, 2]), 'mse', backend='c')\n"
        "print(fb.info()['target'], get('c').target, trainer._program.target)\n"
        "print(bits())\n"
    )
    clean = {name: value for name, value in os.environ.items() if name != "FASTBATCH_TARGET"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    said, digest = done.stdout.splitlines()
    return said.split(), digest


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    """Target -> digest, each forced without the environment; all differ, else equal bits would show nothing."""
    modules, space = sys.modules["fastbatch.backends"], {}
    exec(CODE, space)
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in TARGETS:
            patch.setitem(modules._loaded, "c", native.Native(name))
            found[name] = space["bits"]()
    assert len(set(found.values())) == len(TARGETS)
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_the_environment_chooses_the_target(target, expected):
    said, digest = in_a_process(FASTBATCH_TARGET=target)
    assert said == [target] * 3
    assert digest == expected[target]


def test_the_best_is_chosen_otherwise(expected):
    said, digest = in_a_process()
    assert said == [TARGETS[-1]] * 3
    assert digest == expected[TARGETS[-1]]
