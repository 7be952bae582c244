"""Threads: how many, that callers do not hurt each other, and that forks do not hang."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import BACKENDS, OUTPUTS, assert_same_bits, make_data, make_trainer

import fastbatch as fb
from fastbatch import cpus, threads
from fastbatch.backends import is_available
from fastbatch.protocol import Feed, Sums
from fastbatch.training import fit as fit_module

_native = pytest.importorskip("fastbatch._native", reason="the C backend is missing")

needs_two = pytest.mark.skipif(cpus.available() < 2, reason="one CPU: no helper is ever used")
needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")


@pytest.fixture(autouse=True)
def _no_bound_from_outside(monkeypatch):
    """Here, and in the processes that are started: what the caller's environment says is not what is tested."""
    for name in ("FASTBATCH_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def _run(program: str, timeout: float = 120, **environment: str) -> str:
    """Output of a Python process of its own; a deadlock in it fails."""
    start = "import sys; sys.path.insert(0, sys.argv[1])\n"
    result = subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(program), os.path.dirname(__file__)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


# -- CPUs ----------------------------------------------------------------------------------------------------------


def _tree(root, mounts, groups, files):
    """A /proc and /sys with cgroups; `mounts` (type, part, place, options)."""
    lines = ["22 1 8:1 / / rw,relatime - ext4 /dev/vda rw"]
    lines += [f"30 20 0:26 {part} {place} rw - {kind} cgroup {options}" for kind, part, place, options in mounts]
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text("\n".join(lines) + "\n")
    (root / "proc/self/cgroup").write_text("\n".join(groups) + "\n")
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


V2 = ("cgroup2", "/", "/sys/fs/cgroup", "rw")
V1 = ("cgroup", "/", "/sys/fs/cgroup/cpu,cpuacct", "rw,cpu,cpuacct")


@pytest.mark.parametrize(
    ("mounts", "groups", "files", "expected"),
    [
        ([V2], ["0::/"], {"sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        ([V2], ["0::/"], {"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ([V2], ["0::/"], {}, None),
        ([V2], ["0::/"], {"sys/fs/cgroup/cpu.max": "250000 100000"}, 2),
        ([V2], ["0::/"], {"sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ([V2], ["0::/a/b"], {"sys/fs/cgroup/a/cpu.max": "300000 100000", "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 3),
        ([V2], ["0::/a/b"], {"sys/fs/cgroup/a/cpu.max": "max 1", "sys/fs/cgroup/a/b/cpu.max": "400000 100000"}, 4),
        ([("cgroup2", "/box", "/sys/fs/cgroup", "rw")], ["0::/box"], {"sys/fs/cgroup/cpu.max": "500000 100000"}, 5),
        (
            [V1],
            ["4:cpu,cpuacct:/job", "0::/"],
            {
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "600000",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            },
            6,
        ),
        (
            [V1, ("cgroup2", "/", "/sys/fs/cgroup/unified", "rw")],
            ["4:cpu,cpuacct:/", "0::/"],
            {
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            None,
        ),
        ([("cgroup", "/", "/sys/fs/cgroup/memory", "rw,memory")], ["4:memory:/"], {}, None),
    ],
    ids=[
        "v2",
        "v2-max",
        "v2-root",
        "rounds-down",
        "at-least-1",
        "parent",
        "child",
        "container",
        "v1",
        "hybrid-no-limit",
        "no-cpu-controller",
    ],
)
def test_cgroup_quota(tmp_path, mounts, groups, files, expected):
    assert cpus.cgroup_limit(_tree(tmp_path, mounts, groups, files)) == expected


def test_a_system_without_cgroups_has_no_quota(tmp_path):
    assert cpus.cgroup_limit(tmp_path) is None


def test_the_quota_bounds_threads(monkeypatch):
    monkeypatch.setattr(cpus, "quota", lambda: 1)
    assert cpus.available() == 1
    assert "quota 1" in cpus.explain()


@needs_affinity
@needs_two
def test_the_affinity_mask_is_followed_when_it_changes():
    before = os.sched_getaffinity(0)
    found = []

    def narrow():  # a mask belongs to a thread
        os.sched_setaffinity(0, {min(before)})
        found.append((cpus.available(), threads.allowed(None, 1e12)))

    thread = threading.Thread(target=narrow)
    thread.start()
    thread.join()
    assert found == [(1, 1)]
    assert cpus.available() > 1
    assert threads.allowed(None, 1e12) > 1


@needs_affinity
@needs_two
def test_helpers_follow_the_mask_of_their_caller():
    program = """
        import glob, os
        import fastbatch as fb
        from helpers import make_data, make_trainer

        def masks():
            lines = [line for path in glob.glob("/proc/self/task/*/status") for line in open(path)]
            return sorted({line.split()[1] for line in lines if line.startswith("Cpus_allowed:")})

        cpus = os.sched_getaffinity(0)
        trainer, (x, y) = make_trainer(), make_data(n=64)
        with fb.set_num_threads(2, exact=True):
            for mask in ({min(cpus)}, cpus, {max(cpus)}):
                os.sched_setaffinity(0, mask)
                trainer.fit(x, y, batch_size=32)
                assert trainer.threads_used == 2
                assert [int(text.replace(",", ""), 16) for text in masks()] == [sum(1 << cpu for cpu in mask)]
        print(len(os.listdir("/proc/self/task")))
    """
    assert int(_run(program, OPENBLAS_NUM_THREADS="1")) == 2


# -- the choice ----------------------------------------------------------------------------------------------------


class Simulated:
    """A program whose steps take `cost(threads, now)` ns, run by the tuner the way fb_run does."""

    def __init__(self, cost, most=2, batch=64, available=64):
        self.tuner, self.cost, self.most, self.batch = _native.Tuner(), cost, most, batch
        self.available, self.now, self.chosen = available, 10**9, []

    def run(self, ns, steps=1 << 40):
        """Runs for `ns`, in calls of `steps` steps; returns the time for a step on average."""
        start, made = self.now, 0
        while self.now < start + ns:
            left = steps
            while left and self.now < start + ns:
                asked, _, stretch, until = self.tuner.choose(self.most, left, self.batch, 1e6, self.now)
                assert 1 <= asked <= self.most
                used, begin, made_here = min(asked, self.available), self.now, 0
                while not made_here or (made_here < min(stretch, left) and self.now < min(until, start + ns)):
                    self.now += round(self.cost(used, self.now))
                    made_here += 1
                self.tuner.report(self.batch, asked, used, made_here, self.now - begin)
                left, made = left - made_here, made + made_here
            self.chosen.append(asked)
        return (self.now - start) / made


class Sleeper(Simulated):
    """Its helper sleeps 200 us after its last task; waking it takes 80 us, for which the task waits or does not."""

    awake_until = 0

    def run(self, ns, steps=1 << 40):
        start, made = self.now, 0
        while self.now < start + ns:
            asked, wait, stretch, until = self.tuner.choose(self.most, steps, self.batch, 1e6, self.now)
            begin, made_here, asleep = self.now, 0, self.now > self.awake_until
            used = 1 if asleep and not wait else asked
            if asked == 2 and asleep:
                self.awake_until = self.now + 280_000
                self.now += 80_000 if wait else 0
            while not made_here or (made_here < min(stretch, steps) and self.now < until):
                self.now += round(self.cost(used, self.now))
                made_here += 1
                if used < asked and begin + 80_000 < self.now < self.awake_until:
                    break  # the team starts anew, with the helper
            if used == 2:
                self.awake_until = self.now + 200_000
            self.tuner.report(self.batch, asked, used, made_here, self.now - begin)
            made += made_here
        return (self.now - start) / made


@pytest.mark.parametrize("step", [5e4, 1.5e5, 5e5, 2.5e6, 2e7])
def test_a_helper_that_sleeps_between_two_steps_is_had_all_the_same(step):
    program = Sleeper(lambda threads, now: step / threads)
    program.run(max(2e8, 100 * step), 100)
    assert program.run(max(1e9, 300 * step), 100) <= 1.1 * step / 2


@pytest.mark.parametrize("step", [5e3, 3e4, 2e5, 1e6, 2e7])
@pytest.mark.parametrize("gain", [0.3, 0.8, 1.02, 1.3, 1.9])
def test_the_faster_number_is_found_and_measuring_costs_little(step, gain):
    program = Simulated(lambda threads, now: step if threads == 1 else step / gain)
    program.run(max(2e8, 100 * step))
    took = program.run(max(1e9, 300 * step))
    assert took <= 1.05 * min(step, step / gain) + 1


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_short_calls_learn_too(steps):
    program = Simulated(lambda threads, now: 4e4 * threads)
    program.run(1e8, steps)
    assert program.run(5e8, steps) <= 1.05 * 4e4


def test_time_spent_elsewhere_is_no_reason_to_compare():
    """Six steps of 80 ms now and then: comparing with one thread each time would cost a sixth."""
    step = 8e7
    program = Simulated(lambda threads, now: 2 * step / threads)
    program.run(100 * step)
    took = []
    for _ in range(30):
        program.now += 10**9
        took.append(program.run(6 * step))
    assert sum(took) / 30 <= 1.05 * step


def test_a_machine_that_changes_its_mind_is_followed():
    """The second core is worth nothing for a second, then something again."""

    def cost(threads, now):
        slow = now % (2 * 10**9) >= 10**9
        return 5e4 if threads == 1 else 9e4 if slow else 3e4

    program = Simulated(cost)
    for _ in range(4):
        good = program.run(1e9 - program.now % 1e9)
        bad = program.run(1e9 - program.now % 1e9)
        good, bad = sorted((good, bad))
        assert good <= 1.1 * 3e4
        assert bad <= 1.1 * 5e4


def test_noise_does_not_make_it_waver():
    rng = np.random.default_rng(0)

    def cost(threads, now):
        return 5e4 / threads**0.5 * (1 + 0.2 * rng.random()) + (4e6 if rng.random() < 1e-3 else 0)

    program = Simulated(cost)
    program.run(2e8)
    program.chosen.clear()
    program.run(2e9, 20)
    assert np.mean(np.array(program.chosen) == 2) > 0.9


@pytest.mark.parametrize("step", [3e4, 4.5e5])
@pytest.mark.parametrize(("every", "alone_every"), [(5e6, None), (5e6, 2e7), (1e8, None), (2e7, 2e7)])
def test_stalls_that_single_steps_do_not_show_count(step, every, alone_every):
    """Two threads lose one CPU to a neighbour for 4 ms, every so often; one thread less often."""
    stalls = {1: alone_every, 2: every}
    quick = {1: step, 2: step / 1.5}
    debt = {1: 0.0, 2: 0.0}

    def cost(threads, now):
        took = quick[threads]
        if stalls[threads]:
            debt[threads] += took / stalls[threads]
            if debt[threads] >= 1:
                debt[threads] -= 1
                took += 4e6
        return took

    means = {n: quick[n] * (1 + (4e6 / stalls[n] if stalls[n] else 0)) for n in (1, 2)}
    program = Simulated(cost)
    program.run(3e8)
    assert program.run(5e9) <= 1.08 * min(means.values())


@pytest.mark.parametrize("best", [1, 2, 4, 8, 12])
def test_many_cpus_are_climbed_step_by_step(best):
    program = Simulated(lambda threads, now: 4e5 * (1 / min(threads, best) + 0.1 * max(0, threads / best - 1)), 12)
    program.run(2e9)
    assert program.run(1e9) <= 1.06 * 4e5 / best


def test_helpers_that_cannot_be_had_cost_nothing():
    program = Simulated(lambda threads, now: 3e4, available=1)
    program.run(1e9)
    assert len(program.chosen) < 1000


def test_batches_of_another_size_have_a_choice_of_their_own():
    tuner = Simulated(lambda threads, now: 3e5 / threads)
    tuner.run(2e8)
    tuner.batch, tuner.cost = 8, lambda threads, now: 2e4 * threads
    assert tuner.run(5e8) <= 1.05 * 2e4
    tuner.batch, tuner.cost = 64, lambda threads, now: 3e5 / threads
    assert tuner.run(2e8) <= 1.05 * 1.5e5


backends = pytest.mark.parametrize("backend", [row for row in BACKENDS if row.id != "reference"])


@backends
def test_a_free_choice_changes_no_bit(backend):
    x, y = make_data("cross_entropy", 2000, inputs=60)
    recipe = {"sizes": (60, 300, 100, OUTPUTS), "dropout": 0.2, "backend": backend}
    trainers = [make_trainer("cross_entropy", **recipe) for _ in range(2)]
    trainers[0].fit(x, y, batch_size=50, epochs=20)
    with fb.set_num_threads(1, exact=True):
        trainers[1].fit(x, y, batch_size=50, epochs=20)
    assert_same_bits(trainers[0].model.parameters, trainers[1].model.parameters)


@needs_two
def test_a_free_choice_keeps_each_step_at_its_rate():
    x, y = make_data("cross_entropy", 20_000, inputs=60)
    trainers = [make_trainer("cross_entropy", sizes=(60, 300, 100, OUTPUTS)) for _ in range(2)]
    feed = Feed(x, y, batch=50)
    lrs = 1e-2 / (1 + np.arange(feed.steps))
    with fb.set_num_threads(2):  # whatever the environment says: the first stretch is one step
        trainers[0]._program.run(feed, 0, feed.steps, lrs, 60, Sums())
    with fb.set_num_threads(1, exact=True):
        for step in range(feed.steps):
            trainers[1]._program.run(feed, step, step + 1, lrs[step : step + 1], 60, Sums())
    assert_same_bits(trainers[0].model.parameters, trainers[1].model.parameters)


@needs_two
def test_a_short_call_does_not_wait_for_a_helper_that_sleeps():
    x, y = make_data("mse", 64, inputs=64)
    trainer = make_trainer("mse", sizes=(64, 200, OUTPUTS))  # 3.6 MFLOP
    with fb.set_num_threads(2):
        trainer.step(x, y)
        for _ in range(20):
            time.sleep(0.003)  # it parks
            trainer.step(x, y)
            assert trainer.threads_used == 1


# -- many callers --------------------------------------------------------------------------------------------------


@needs_two
def test_callers_share_the_cpus(monkeypatch):
    """A second caller comes while the first has helpers: the first gives back what is not his share, and later has it
    again."""
    monkeypatch.setattr(fit_module, "CHUNK", 0.002)
    count = cpus.available()
    x, y = make_data("mse", 4096, inputs=256)
    first, second = make_trainer("mse", sizes=(256, 256, OUTPUTS)), make_trainer("mse", sizes=(256, 1024, OUTPUTS))
    seen, has_all, over = [], threading.Event(), threading.Event()
    deadline = time.perf_counter() + 60

    def chunk(steps, logs):
        seen.append((time.perf_counter(), first.threads_used))
        if first.threads_used == count:
            has_all.set()
            first.stop_training = over.is_set()
        if seen[-1][0] > deadline:
            first.stop_training = True

    def fit():
        first.fit(x, y, batch_size=512, epochs=100000, callbacks=[fb.LambdaCallback(on_chunk_end=chunk)], verbose=0)

    with fb.set_num_threads(count, exact=True):
        thread = threading.Thread(target=fit)
        thread.start()
        assert has_all.wait(60)
        spans = []
        for _ in range(4):
            start = time.perf_counter()
            second.gradients(np.tile(x, (4, 1)), np.tile(y, (4, 1)))  # one call, long
            spans.append((start, time.perf_counter()))
        over.set()
        thread.join()
    took = np.median([end - start for start, end in spans])
    # threads of chunks that lie well inside one of the long calls
    beside = [n for t, n in seen for start, end in spans if start + 0.6 * took < t < end - 0.05 * took]
    assert seen[-1][1] == count, "it never had all again"
    assert beside, "no chunk ended beside a long call"
    assert np.median(beside) <= max(1, count // 2)


@needs_two
@backends
def test_callers_in_two_threads_get_the_bits_of_one_alone(backend):
    """Each with helpers, whom they share."""
    x, y = make_data("mse", 400, inputs=60)

    def train(k: int) -> np.ndarray:
        trainer = make_trainer("mse", sizes=(60, 300, OUTPUTS), seed=k, backend=backend)
        trainer.fit(x, y, batch_size=100, epochs=4)
        return trainer.model.parameters

    with fb.set_num_threads(2, exact=True):
        alone = [train(k) for k in range(4)]
        with ThreadPoolExecutor(4) as pool:
            for got, expected in zip(pool.map(train, range(4)), alone):
                assert_same_bits(got, expected)


@needs_two
def test_a_team_shrinks_between_two_steps_of_a_run(monkeypatch):
    """Not only when the run returns to Python."""
    monkeypatch.setattr(fit_module, "CHUNK", 60)
    count = cpus.available()
    x, y = make_data("mse", 4096, inputs=256)
    first, second = make_trainer("mse", sizes=(256, 512, OUTPUTS)), make_trainer("mse", sizes=(256, 1024, OUTPUTS))
    with fb.set_num_threads(count, exact=True):
        thread = threading.Thread(target=first.fit, args=(np.tile(x, (20, 1)), np.tile(y, (20, 1)), 64))
        thread.start()
        time.sleep(0.05)
        while thread.is_alive():
            second.gradients(x, y)
        thread.join()
    assert first.threads_used <= max(1, count // 2)


def test_helpers_never_outnumber_the_cpus():
    program = """
        import os, threading
        import fastbatch as fb
        from helpers import make_data, make_trainer
        x, y = make_data("mse", 2000, inputs=300)
        before = len(os.listdir("/proc/self/task"))
        most = []
        def train(k):
            trainer = make_trainer("mse", sizes=(300, 300, 10), seed=k)
            trainer.fit(x, y, batch_size=200, epochs=10)
            most.append(len(os.listdir("/proc/self/task")))
        threads = [threading.Thread(target=train, args=(k,)) for k in range(6)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(max(most) - 6 - before)
    """
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("this system does not list a process's threads")
    assert int(_run(program.replace("10)", f"{OUTPUTS})"))) <= cpus.available() - 1


# -- processes -----------------------------------------------------------------------------------------------------

CHILD = """
    import hashlib, os, threading, time
    import fastbatch as fb
    from helpers import make_data, make_trainer

    def work(seed=0):
        trainer, (x, y) = make_trainer(sizes=(20, 64, 64, 4), seed=3), make_data(n=256, inputs=20)
        with fb.set_num_threads(2, exact=True):
            trainer.fit(x, y, batch_size=32, epochs=3)
            assert trainer.threads_used == 2
        return hashlib.sha256(trainer.model.parameters.tobytes()).hexdigest()

    def wait(pid):
        for _ in range(600):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                assert status == 0, status
                return
            time.sleep(0.1)
        os.kill(pid, 9)
        raise SystemExit("the child hangs")
"""


def _children(program: str) -> None:
    """The last lines are digests of parameters: all the same."""
    lines = _run(textwrap.dedent(CHILD) + textwrap.dedent(program)).splitlines()
    assert len(set(lines)) == 1
    assert len(lines) > 1


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@needs_fork
@pytest.mark.parametrize(
    "busy", [pytest.param(0, marks=pytest.mark.exhaustive), pytest.param(1, marks=pytest.mark.exhaustive), 3]
)
def test_fork(busy):
    """Of a process with helpers, while `busy` other threads are training."""
    _forks(busy, "c")


@needs_fork
@pytest.mark.exhaustive  # seconds
def test_fork_of_numba():
    if not is_available("numba"):
        pytest.skip("backend numba is not available")
    _forks(1, "numba")


def _forks(busy: int, backend: str) -> None:
    _children(f"""
        fb.set_backend("{backend}")
        print(work(), flush=True)
        done = threading.Event()
        def train():
            while not done.is_set():
                trainer, (x, y) = make_trainer(sizes=(20, 64, 64, 4)), make_data(n=256, inputs=20)
                trainer.fit(x, y, batch_size=32)
        threads = [threading.Thread(target=train, daemon=True) for _ in range({busy})]
        for thread in threads: thread.start()
        for _ in range(10):
            pid = os.fork()
            if pid == 0:
                print(work(), flush=True)
                if os.fork() == 0:  # a child of the child, which has helpers by now
                    print(work(), flush=True)
                    os._exit(0)
                os._exit(os.wait()[1] != 0)
            wait(pid)
        done.set()
        for thread in threads: thread.join()
        print(work())
    """)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_multiprocessing_pool(method):
    # spawn needs a main module with a name: what runs in the children is in helpers' neighbour
    _children(f"""
        import multiprocessing
        from test_threads import digest
        print(digest(0), flush=True)
        with multiprocessing.get_context("{method}").Pool(2) as pool:
            for line in pool.map_async(digest, range(4)).get(90):
                print(line)
    """)


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
def test_joblib(backend):
    pytest.importorskip("joblib")
    _children(f"""
        import joblib
        from test_threads import digest
        print(digest(0), flush=True)
        both = joblib.Parallel(n_jobs=2, backend="{backend}", timeout=90)
        for line in both(joblib.delayed(digest)(k) for k in range(4)):
            print(line)
    """)


def digest(k: int) -> str:
    """Parameters after a fit with as many threads as it likes."""
    import hashlib

    trainer, (x, y) = make_trainer("mse", sizes=(200, 200, OUTPUTS), seed=3), make_data("mse", 1000, inputs=200)
    trainer.fit(x, y, batch_size=250, epochs=5)
    return hashlib.sha256(trainer.model.parameters.tobytes()).hexdigest()


# -- threadpoolctl -------------------------------------------------------------------------------------------------

ORDERS = ["import fastbatch as fb, threadpoolctl", "import threadpoolctl, fastbatch as fb"]


@pytest.mark.parametrize("order", ORDERS, ids=["before", "after"])
def test_threadpoolctl_lists_and_bounds_fastbatch(order):
    pytest.importorskip("threadpoolctl", minversion="3.2")
    _run(f"""
        {order}
        import fastbatch.threads as threads
        def ours():
            found = [row for row in threadpoolctl.threadpool_info() if row["internal_api"] == "fastbatch"]
            assert len(found) == 1, found
            return found[0]
        row = ours()
        assert row["num_threads"] == fb.get_num_threads() and row["version"] == fb.__version__
        before = fb.get_num_threads(), threads.reason()
        with fb.set_num_threads(8):
            with threadpoolctl.threadpool_limits(3):
                assert fb.get_num_threads() == ours()["num_threads"] == 3
                assert threads.reason() == "threadpoolctl"
                with threadpoolctl.threadpool_limits(1, user_api="fastbatch"):
                    assert fb.get_num_threads() == 1 == threads.allowed(None, 1e12)
                with threadpoolctl.threadpool_limits(1, user_api="blas"):
                    assert fb.get_num_threads() == 3
            assert fb.get_num_threads() == 8
        assert before == (fb.get_num_threads(), threads.reason())
    """)


def test_fastbatch_does_not_import_threadpoolctl():
    _run("""
        import sys
        import fastbatch as fb
        fb.backends()
        assert "threadpoolctl" not in sys.modules
    """)


def test_a_missing_threadpoolctl_is_reported_as_ever():
    _run("""
        import sys
        import fastbatch
        finders = len(sys.meta_path)
        sys.path[:] = [path for path in sys.path if "site-packages" not in path]
        for _ in range(2):
            try:
                import threadpoolctl
            except ModuleNotFoundError as error:
                assert error.name == "threadpoolctl"
            else:
                raise AssertionError
        assert len(sys.meta_path) == finders - 1
    """)


# -- info ----------------------------------------------------------------------------------------------------------


def test_info_says_why_so_many_threads_and_how_long_a_barrier_takes():
    found = fb.info()
    assert found["num_threads"] == cpus.available()
    assert f"({cpus.explain()};" in str(found)
    if found["num_threads"] > 1:
        assert 0 < found["barrier_ns"] < 1e7
        assert f" ns between {found['barrier_threads']} threads" in str(found)
    with fb.set_num_threads(1):
        assert fb.info()["barrier_ns"] is None
