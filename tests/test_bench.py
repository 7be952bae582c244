"""The benchmark: what is timed has been verified, what cannot be timed is named, and the command says both."""

from __future__ import annotations

import json
import math
import re
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

import fastbatch as fb
from fastbatch import ops
from fastbatch.bench import CONTESTANTS, WORKLOADS, Workload, bench, command, measure, verify, workloads
from fastbatch.bench.contestants import Contestant, Fastbatch
from fastbatch.bench.contestants.jax_scan import JaxScan
from fastbatch.bench.contestants.numpy import NumPy
from fastbatch.cli import main

if not fb.backends()[0]["available"]:
    pytest.skip("the benchmark is of the c backend", allow_module_level=True)

from fastbatch import _native

SMALL = Workload("small", (3, 9, 2), "tanh", "mse", "adam", 8, 4)
LABELS = Workload("labels", (4, 5, 3), "relu", "ce", "sgd", 7, 3, 1e-2)

# Not here: torch.compile, which takes a C++ compiler and tens of seconds, and JAX, which gets a process of its own
# because it warns at every later fork.
HERE = [contestant for contestant in CONTESTANTS if contestant.key in ("fastbatch", "numpy", "torch")]


@pytest.fixture(params=HERE, ids=lambda contestant: contestant.key)
def contestant(request):
    if request.param.version() is None:
        pytest.skip(f"{request.param.library} is not installed")
    return request.param


# -- verification ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workload", [SMALL, LABELS], ids=lambda workload: workload.name)
def test_contestants_do_the_same_work(contestant, workload):
    verify(contestant, workload)


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_contestants_know_every_activation(contestant, activation):
    workload = replace(SMALL, act=activation)
    if contestant is NumPy and activation == "gelu":
        with pytest.raises(fb.BackendError, match="erf"):
            verify(contestant, workload)
    else:
        verify(contestant, workload)


@pytest.mark.exhaustive  # compiles each network twice
def test_jax_does_the_same_work():
    if JaxScan.version() is None:
        pytest.skip("jax is not installed")
    code = (
        "from dataclasses import replace\n"
        "from fastbatch import ops\n"
        "from fastbatch.bench import Workload, verify\n"
        "from fastbatch.bench.contestants import select\n"
        f"small, labels = {SMALL}, {LABELS}\n"
        "for contestant in select(['jax', 'jax-scan'])[1:]:\n"
        "    for workload in (labels, *(replace(small, act=act) for act in ops.ACTIVATIONS)):\n"
        "        verify(contestant, workload)\n"
        "        print(contestant.key, workload.act)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 * (1 + len(ops.ACTIVATIONS))


class WrongRate(NumPy):
    name = "wrong rate"

    def __init__(self, workload, X, y):
        super().__init__(replace(workload, lr=workload.lr * 1.01), X, y)


class NoTraining(NumPy):
    name = "no training"

    def _update(self):
        pass


class NoBias(NumPy):
    name = "no bias"

    def _update(self):
        for _, db in self.gradients:
            db[...] = 0
        super()._update()


class SomeRows(NumPy):
    name = "some rows"

    def last_order(self):
        return np.zeros_like(self.order)


class NotANumber(NumPy):
    name = "not a number"

    def epoch(self):
        return math.nan * super().epoch()


@pytest.mark.parametrize("liar", [NoTraining, NoBias, SomeRows, NotANumber, WrongRate], ids=lambda liar: liar.name)
def test_verification_refuses_other_work(liar):
    with pytest.raises(fb.BackendError, match=f"{liar.name} on fast"):
        verify(liar, replace(SMALL, name="fast", opt="sgd", lr=0.2))


# -- measurement -------------------------------------------------------------------------------------------------------


class Missing(NumPy):
    name = "missing"
    library = "no-such-distribution"


class Broken(Contestant):
    name = "broken"
    library = "numpy"

    def __init__(self, workload, X, y):
        raise OSError("libnothing.so: cannot open")


class BreaksLater(NumPy):
    name = "breaks later"
    epochs = 0

    def epoch(self):
        BreaksLater.epochs += 1
        if BreaksLater.epochs > 4:
            raise MemoryError("no more")
        return super().epoch()


def test_a_measurement_has_every_contestant_by_name():
    said = []

    class Elsewhere(Fastbatch):  # one of ours is no peer
        key = name = "fastbatch elsewhere"

    field = [Fastbatch, Elsewhere, NumPy, Missing, Broken, NoTraining, BreaksLater]
    found = measure(SMALL, field, peaks={str(n): 100.0 for n in range(1, 65)}, progress=said.append)
    entries = found["contestants"]
    assert list(entries) == [c.name for c in field]
    for name in ("fastbatch", "NumPy"):
        best = entries[name]["samples"]["auto" if name == "fastbatch" else str(entries[name]["threads"])]
        assert len(best) > 5  # a turn is several of such short epochs
        assert entries[name]["us"] == pytest.approx(statistics.median(best), abs=2e-3)
    assert entries["missing"] == {"error": "not installed"}
    assert entries["broken"]["error"] == "OSError: libnothing.so: cannot open"
    assert "computes something else" in entries["no training"]["error"]
    assert entries["breaks later"]["error"] == "MemoryError: no more"
    assert found["nearest"] == "NumPy"
    assert found["ratio"] == pytest.approx(entries["NumPy"]["us"] / entries["fastbatch"]["us"], rel=1e-2)
    assert found["gflops"] == pytest.approx(SMALL.flops_per_step / entries["fastbatch"]["us"] / 1e3, abs=6e-3)
    assert found["share"] == pytest.approx(found["gflops"] / 100, abs=1e-3)
    assert any("NumPy" in text for text in said)


def test_without_fastbatch_there_is_no_ratio():
    class Unlucky(Fastbatch):
        def epoch(self):
            raise fb.BackendError("nothing works")

    found = measure(SMALL, [Unlucky, NumPy])
    assert "nothing works" in found["contestants"]["fastbatch"]["error"]
    assert not {"ratio", "nearest", "gflops", "share"} & set(found)


@pytest.mark.parametrize("target", [name for name, usable in _native.targets().items() if usable])
def test_ceilings(target):
    rates = [_native.measure_peak(target, loops=20_000) for _ in range(10)]
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)
    x = np.ones((256, 256), np.float32)
    out, kernels = np.empty_like(x), _native.Kernels(target)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        kernels.dense_forward(x, x, None, 0, out, out)
        seconds.append(time.perf_counter() - start)
    product = 2 * 256**3 / min(seconds) / 1e9
    assert product < 1.3 * max(rates), "a product that passes the ceiling: one of the two is counted wrongly"


def test_ceilings_of_threads_that_cannot_be_had_are_nan():
    assert math.isnan(_native.measure_peak("baseline", 65, 10))
    assert math.isnan(_native.measure_barrier(65, 10))
    assert _native.measure_barrier(2, 100) > 0


def test_workloads_are_chosen_by_part_of_a_name():
    assert [w.name for w in workloads.select(["linreg"])] == ["linreg-1x1-b32-sgd"]
    assert workloads.select([], heavy=True) == WORKLOADS
    assert not any(w.heavy for w in workloads.select([]))
    quick = workloads.select([], quick=True)
    assert 0 < len(quick) < len(WORKLOADS)
    assert all(w.steps < workloads.BY_NAME[w.name].steps for w in quick)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_saves(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    files = tmp_path / "found.json", tmp_path / "found.png"
    chosen = ["linreg", "online", "--quick", "--peers", "numpy", "--json", str(files[0]), "--plot", str(files[1])]
    assert main(["bench", *chosen]) == 0
    out = capsys.readouterr().out
    head, *lines = out.splitlines()
    assert re.split(r"  +", head) == ["us per step", "fastbatch", "NumPy", "ratio", "GFLOP/s", "roofline", "threads"]
    found = json.loads(files[0].read_text())
    assert list(found["results"]) == ["linreg-1x1-b32-sgd", "online-16-32-1-b1-sgd"]
    for line, result in zip(lines, found["results"].values()):
        name, ours, numpys, ratio, gflops, share, threads = line.split()
        assert name == result["workload"]["name"]
        assert float(ours) == pytest.approx(result["contestants"]["fastbatch"]["us"], abs=0.06)
        assert float(numpys) == pytest.approx(result["contestants"]["NumPy"]["us"], abs=0.06)
        assert float(ratio) == pytest.approx(result["ratio"], abs=0.006)
        assert float(gflops) == pytest.approx(result["gflops"], abs=0.06)
        assert float(share.rstrip("%")) == pytest.approx(100 * result["share"], abs=0.06)
        assert int(threads) == result["contestants"]["fastbatch"]["threads"]
    about = found["machine"]
    for fact in (about["cpu"], about["target"], f"NumPy {np.__version__}", "roofline: "):
        assert fact in out
    assert all(f"{gflops} GFLOP/s on {n}" in out for n, gflops in about["peak_gflops"].items())
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_the_command_names_what_is_missing_or_fails(monkeypatch, capsys):
    monkeypatch.setattr(command.contestants, "select", lambda keys: [Fastbatch, Missing, Broken])
    found = bench(["linreg"], quick=True)
    assert found["results"]["linreg-1x1-b32-sgd"]["contestants"]["missing"] == {"error": "not installed"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[2:4] == ["-", "error"]
    assert "missing: not installed" in lines
    assert "error: broken on linreg-1x1-b32-sgd: OSError: libnothing.so: cannot open" in lines


def test_ctrl_c_keeps_what_was_measured(monkeypatch, tmp_path, capsys):
    def interrupted(workload, *arguments):
        if workload.name.startswith("online"):
            raise KeyboardInterrupt
        return measure(workload, *arguments)

    monkeypatch.setattr(command, "measure", interrupted)
    path = tmp_path / "found.json"
    arguments = ["linreg", "online", "--quick", "--peers", "numpy", "--no-plot", "--json", str(path)]
    assert main(["bench", *arguments]) == 130
    assert list(json.loads(path.read_text())["results"]) == ["linreg-1x1-b32-sgd"]
    assert "linreg-1x1-b32-sgd" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mnits-784-128-10-b32-adam"], ["workload", "did you mean 'mnist-784-128-10-b32-adam'?"]),
        (["--peers", "nunpy"], ["peer", "did you mean 'numpy'?"]),
        (["--json", "{}/no such folder/found.json"], ["json", "no such folder"]),
        (["--plot", "{}/no such folder/found.png"], ["plot", "no such folder"]),
        (["--plot", "{}/found.nonsense"], ["plot", "nonsense"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_bad_argument_is_one_line_before_anything_runs(arguments, words, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="endings are matplotlib's")
    monkeypatch.setattr(command, "machine", lambda field: pytest.fail("measured before the check"))
    given = [text.replace("{}", str(tmp_path)) for text in arguments]
    assert main(["bench", "--json", str(tmp_path / "a.json"), *given]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastbatch: ")
    assert all(word in err for word in words)


def test_without_matplotlib_the_extra_is_named(monkeypatch, tmp_path, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = ["bench", "linreg", "--quick", "--peers", "numpy", "--json", str(tmp_path / "a.json")]
    assert main(arguments) == 1
    assert "pip install 'fastbatch[bench]'" in capsys.readouterr().err
    assert main([*arguments, "--no-plot"]) == 0
