"""Registries agree: a row in NumPy, the same row in every backend that claims it; messages name the file to edit."""

from __future__ import annotations

import platform
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases import C_TARGETS, DTYPES, LOSS_NAMES, OPTIMIZERS, SHORT, SUBJECTS, loss_variants, supported

import fastbatch as fb
from fastbatch import ops
from fastbatch.arena import STAGE_FIELDS
from fastbatch.plan import Plan, Stage

ROOT = Path(__file__).parents[1]
OPS = ROOT / "csrc" / "ops"
needs_c = pytest.mark.skipif(not C_TARGETS, reason="the c backend is not available")


def native():
    from fastbatch import _native

    return _native


def plan_of(dtype="float32", activation="identity", loss="mse", optimizer=None) -> Plan:
    row = activation if isinstance(activation, ops.Activation) else ops.get_activation(activation)
    stage = Stage(1, 1, 0, 1, row, 256, 0, False)
    loss = loss if isinstance(loss, ops.Loss) else ops.get_loss(loss)
    return Plan((stage,), dtype, loss, optimizer or ops.SGD(), 2)


@needs_c
def test_names_agree():
    rules = {row.rule for row in OPTIMIZERS.values()}
    for what, python, c in (
        ("activations", set(ops.ACTIVATIONS), set(native().activations)),
        ("losses", set(ops.LOSSES), set(native().losses)),
        ("optimizers", rules, set(native().optimizers)),
    ):
        assert not python - c, f"{python - c}: add a row to csrc/ops/{what}.def"
        assert not c - python, f"{c - python}: add a row to fastbatch/ops/{what}.py"


@needs_c
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hyperparameters_agree(name):
    row = OPTIMIZERS[name]
    asked, given = set(native().optimizers[row.rule]), set(row.constants())
    assert asked == given, (
        f"rule {row.rule!r}: csrc/ops/optimizers.def asks for {sorted(asked)}, "
        f"fastbatch/ops/optimizers.py gives {sorted(given)}"
    )


@needs_c
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_slots_agree(name):
    row = OPTIMIZERS[name]
    found = re.search(rf"OPTIMIZER\({row.rule}, *(\d+)", (OPS / "optimizers.def").read_text())
    assert int(found[1]) == row.slots, f"{row.rule}: slots in csrc/ops/optimizers.def and fastbatch/ops/optimizers.py"


@needs_c
@pytest.mark.parametrize("name", ops.ACTIVATIONS)
def test_saves_agree(name):
    found = re.search(rf"ACTIVATION\({name}, *(\w+)", (OPS / "activations.def").read_text())
    row = ops.ACTIVATIONS[name]
    assert found[1].lower() == row.saves, f"{name}: csrc/ops/activations.def and fastbatch/ops/activations.py"


@needs_c
def test_stage_layout_agrees():
    """fb_stage is all int64, and doubles of 8 bytes at its end, its fields in the order of STAGE_FIELDS."""
    text = (ROOT / "csrc" / "fastbatch.h").read_text()
    body = re.search(r"typedef struct fb_stage \{(.*?)\} fb_stage;", text, re.DOTALL)[1]
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
    declared = [name.strip() for line in re.findall(r"(?:int64_t|double) ([^;]+);", body) for name in line.split(",")]
    assert tuple(declared) == STAGE_FIELDS, "fastbatch/arena.py: STAGE_FIELDS, csrc/fastbatch.h: fb_stage"
    assert not re.sub(r"(int64_t|double) [^;]+;", "", body).strip()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_backend_supports_every_row_or_says_why(subject, dtype):
    backend = SUBJECTS[subject]
    plans = [plan_of(dtype, activation=name) for name in ops.ACTIVATIONS]
    plans += [plan_of(dtype, loss=loss_variants(1)[name]) for name in LOSS_NAMES]
    plans += [plan_of(dtype, optimizer=row) for row in OPTIMIZERS.values()]
    for plan in plans:
        reason = backend.supports(plan)
        assert (reason is None) == supported(subject, dtype)
        if reason is not None:
            assert dtype in reason


def test_a_row_that_only_numpy_has(subject):
    """A backend without the row says which file it is missing from; auto moves on to one that has it."""

    class Cubic(ops.Loss):
        name = "cubic"

    class Nameless(ops.SGD):
        rule = "nameless"

    row = replace(ops.get_activation("tanh"), name="mish")
    plans = {"activations": plan_of(activation=row), "losses": plan_of(loss=Cubic())}
    plans["optimizers"] = plan_of(optimizer=Nameless())
    for what, plan in plans.items():
        reason = SUBJECTS[subject].supports(plan)
        if subject in C_TARGETS:
            assert f"csrc/ops/{what}.def" in reason
        elif subject == "numba":
            assert f"fastbatch/backends/scalars/{what}.py" in reason
        else:
            assert reason is None


def test_what_is_registered_can_be_found():
    for name, row in ops.ACTIVATIONS.items():
        assert ops.get_activation(name) is row
        assert row.name == name
        assert row.saves in ("none", "a", "z")
        assert row.gain in ("he", "glorot")
        assert row.ulp >= 0
        fb.Activation(name)
    for name, cls in ops.LOSSES.items():
        assert cls.name == name
        assert isinstance(ops.get_loss(name), cls)
        assert getattr(fb.losses, cls.__name__) is cls
        assert cls.targets in ("values", "counts", "positive", "classes", "binary")
    for name, cls in ops.OPTIMIZERS.items():
        assert isinstance(ops.get_optimizer(name), cls)
        assert getattr(fb, cls.__name__) is cls
    for name in ops.INITIALIZERS:
        fb.Dense(3, init=name)
    for metric, (_, kinds) in ops.METRICS.items():
        assert any(ops.get_metrics(metric, cls()) for cls in ops.LOSSES.values() if cls.targets in kinds)


@pytest.mark.parametrize("lookup", ["activation", "initializer", "loss", "optimizer"])
def test_unknown_names_list_the_registry(lookup):
    registry = getattr(ops, {"loss": "LOSSES"}.get(lookup, f"{lookup.upper()}S"))
    with pytest.raises(fb.ArgumentError) as caught:
        getattr(ops, f"get_{lookup}")("no_such_name")
    assert all(name in str(caught.value) for name in registry)


@needs_c
def test_targets_run_what_they_say():
    targets = native().targets()
    text = (ROOT / "csrc/targets/targets.def").read_text()
    elsewhere = {"x86_64": "aarch64", "aarch64": "x86_64"}.get(platform.machine(), "aarch64|x86_64")
    here = re.sub(rf"#if defined\(__({elsewhere})__\)\n.*?#endif", "", text, flags=re.DOTALL)
    assert list(targets) == re.findall(r"^TARGET\((\w+)", here, re.MULTILINE)
    assert any(targets.values())
    for name in targets:
        for short in SHORT.values():
            assert (ROOT / "csrc" / "targets" / f"{name}_{short}.c").exists()
        if targets[name]:
            backend = SUBJECTS[f"c-{name}"]
            assert backend.target == name
            lanes = [backend.shape(dtype)[0] for dtype in DTYPES]
            assert lanes[0] & (lanes[0] - 1) == 0
            assert lanes[0] == 2 * lanes[1]
        else:
            with pytest.raises(fb.BackendError, match="cannot run it"):
                type(SUBJECTS[C_TARGETS[0]])(name)
    # wider vectors for better targets, so that no two of them are the same code under two names
    lanes = [SUBJECTS[name].shape("float32")[0] for name in C_TARGETS]
    assert lanes == sorted(lanes)
    with pytest.raises(fb.BackendError, match=r"baselin.*did you mean 'baseline'"):
        type(SUBJECTS[C_TARGETS[0]])("baselin")


@pytest.mark.parametrize("dtype", DTYPES)
def test_targets_are_different_code(dtype):
    """Where fused multiply-add differs from two roundings, at least two targets differ: the dispatch did dispatch."""
    if len(C_TARGETS) < 2:
        pytest.skip("one target only")
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((8, 64)).astype(dtype), rng.standard_normal((64, 64)).astype(dtype)
    bits = set()
    for name in C_TARGETS:
        a = np.empty((8, 64), dtype)
        SUBJECTS[name].dense_forward(x, w, None, ops.get_activation("identity"), a, None)
        bits.add(a.tobytes())
    assert len(bits) > 1
