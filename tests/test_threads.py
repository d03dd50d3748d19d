# SPDX-License-Identifier: BSD-3-Clause
"""Threads: the same bits for any number of them, and a pool that survives forks, signals, other threads and the exit."""
import sys
import threading

import numpy as np
import pytest
from cases import FLOATS, NATIVES, laid_out, operands, random
from test_package import python

import pyneuro as pn
import pyneuro.nn.functional as F
from pyneuro import nn, optim
from pyneuro.kernels import make_backend, threads
from pyneuro.kernels.signature import KERNELS

if not NATIVES:
    pytest.skip("the extension is not built", allow_module_level=True)

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=["float32", "float64"])
DIVISIBLE = sorted(k for k, spec in KERNELS.items() if spec.parts or spec.map)
SIZES = {"z": 9, "m": 500, "k": 60, "n": 150, "a": 20, "b": 150, "c": 20, "v": 60, "h": 7}    # that are worth cutting
COUNTS = (1, 2, 3, 5)


def extents(kernel, sizes=SIZES, line=150_000):
    return {letter: sizes[letter] for letter in KERNELS[kernel].letters} | {"...": line}


# -------------------------------------------------------------------------------------------------- what the table says

@pytest.mark.parametrize("kernel", [k for k, spec in KERNELS.items() if spec.parts])
def test_every_written_slot_has_the_axes_that_may_be_cut(kernel):
    spec = KERNELS[kernel]
    assert not spec.map
    assert all(axis in slot.axes for axis in spec.parts for slot in spec.slots if slot.written)
    assert not any(axis in slot.axes for axis in spec.parts for slot in spec.slots if slot.within), \
        "a part would see some of the indices, and write before another has found a wrong one"


def part(slot, buf, axis, start, end):
    """A view of an operand: that part of an axis, if it has it."""
    at = [i for i, a in enumerate(slot.axes) if a == axis]
    return buf[(slice(None),) * at[0] + (slice(start, end),)] if at else buf


@pytest.mark.parametrize("kernel", DIVISIBLE)
@pytest.mark.parametrize("backend", NATIVES)
@each_dtype
def test_parts_have_the_bits_of_the_whole(kernel, backend, dtype):
    run, spec = make_backend(backend).run, KERNELS[kernel]
    small = {"z": 4, "m": 37, "k": 300, "n": 71, "a": 9, "b": 70, "c": 6, "v": 5, "h": 7}
    for sizes, layout in (small, "contiguous"), (small, "transposed"), (small | {"n": 3, "b": 1, "a": 67}, "contiguous"):
        given, attrs = operands(kernel, extents(kernel, sizes, 203), dtype, random(kernel, layout))
        for axis in spec.parts or ["..."]:
            whole, parts = ([laid_out(b, layout, s.written) for s, b in zip(spec.slots, given)] for _ in range(2))
            run(kernel, tuple(whole), attrs)
            extent = next(b.shape[s.axes.index(axis)] for s, b in zip(spec.slots, given) if axis in s.axes)
            cuts = sorted({0, 1, extent // 3, min(64, extent), extent})
            for start, end in zip(cuts[::-1][1:], cuts[::-1][:-1]):                  # the last one first
                run(kernel, tuple(part(s, b, axis, start, end) for s, b in zip(spec.slots, parts)), attrs)
            for slot, a, b in zip(spec.slots, whole, parts):
                assert a.tobytes() == b.tobytes(), f"{slot.name} cut along {axis}, {sizes}, {layout}"


# ------------------------------------------------------------------------------------------- bits by number of threads

@pytest.mark.parametrize("kernel", DIVISIBLE)
@each_dtype
def test_kernel_has_the_same_bits_on_any_number_of_threads(kernel, dtype):
    native, spec = make_backend("native"), KERNELS[kernel]
    for layout in ("contiguous", "transposed"):
        given, attrs = operands(kernel, extents(kernel), dtype, random(kernel))
        if spec.map:
            given = [b.reshape(500, -1) if s.axes == ("...",) else b for s, b in zip(spec.slots, given)]
        given = [laid_out(b, layout, s.written) for s, b in zip(spec.slots, given)]
        assert native.parts(kernel, tuple(given), attrs) > 1
        results = set()
        for n in COUNTS:
            pn.set_num_threads(n)
            bufs = [b.copy(order="K") for b in given]
            native.run(kernel, tuple(bufs), attrs)
            results.add(b"".join(b.tobytes() for b in bufs))
        assert len(results) == 1, layout


@pytest.mark.parametrize("kernel", sorted(KERNELS.keys() - set(DIVISIBLE)))
def test_a_kernel_that_cannot_be_cut_is_not(kernel):
    bufs, attrs = operands(kernel, extents(kernel, dict.fromkeys(SIZES, 500) | {"a": 20, "c": 20, "h": 7}), np.float32, random(kernel))
    assert make_backend("native").parts(kernel, tuple(bufs), attrs) == 1


@pytest.mark.parametrize("kernel", DIVISIBLE)
def test_a_call_that_one_thread_prepares_can_be_cut_for_more(kernel):
    """As a plan is recorded by one, and run when there are others."""
    native = make_backend("native")
    bufs, attrs = operands(kernel, extents(kernel), np.float32, random(kernel))
    found = []
    for n in 1, 2:
        pn.set_num_threads(n)
        found.append(native.parts(kernel, tuple(bufs), attrs))
    assert found[0] == found[1] > 1


def test_small_calls_are_left_whole():
    parts = make_backend("native").parts
    x, y = np.ones((64, 64), np.float32), np.ones((64, 64), np.float32)
    assert parts("add", (x, x, y)) == parts("matmul", (x, x, y)) == 1
    one = np.ones((1, 1), np.float32)
    assert parts("sum", (np.ones((1, 10**6, 1), np.float32), one)) == 1              # one chain of sums
    assert parts("sum", (np.ones((1, 10**5, 10), np.float32), np.ones((1, 10), np.float32))) == 1    # narrow columns
    table, index = np.ones((10**5, 8), np.float32), np.zeros(100, np.int64)
    assert parts("take", (table, index, np.ones((100, 8), np.float32))) == 1         # of a large table, a little


def trained():
    """Every byte that three steps of training leave, large enough for threads."""
    pn.manual_seed(4)
    model = nn.Sequential(nn.Linear(300, 400), nn.GELU(), nn.Dropout(0.2), nn.Linear(400, 30))
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    x, labels = pn.randn(256, 300), pn.randint(30, (256,))
    for _ in range(3):
        loss = F.cross_entropy(model(x), labels) + model[0].weight.softmax(0).var(1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return b"".join(p.detach().numpy().tobytes() for p in model.parameters()) + np.float32(loss.item()).tobytes()


def test_training_has_the_same_bits_on_any_number_of_threads():
    results = set()
    for n in COUNTS:
        pn.set_num_threads(n)
        results.add(trained())
    assert len(results) == 1


def test_an_error_in_parts_writes_nothing():
    pn.set_num_threads(3)
    table, index, y = np.ones((50, 4000), np.float32), np.arange(50), np.full((50, 4000), 7, np.float32)
    index[-1] = 50
    with pytest.raises(IndexError, match=r"index\[49\] is 50"):
        make_backend("native").run("take", (table, index, y))
    assert (y == 7).all()


@pytest.mark.parametrize(("ftz", "kept"), [("0", 1), ("1", 0)])
def test_workers_flush_denormals_as_callers_do(ftz, kept):
    code = ("import numpy as np, pyneuro as pn; pn.set_num_threads(3); x = pn.full((10**6,), 1e-40)\n"
            "print(*np.unique([((x * 1).numpy() > 0).mean() for _ in range(9)]), np.float32(1e-40) * np.float32(1) > 0)")
    assert python(code, PYNEURO_FTZ=ftz)[1] == f"{kept:.1f} True"


# --------------------------------------------------------------------------------------------------- how many there are

def test_the_number_of_threads():
    for n in (1, 5, np.int64(2), True):
        pn.set_num_threads(n)
        assert pn.get_num_threads() == n
    for n in (0, -1, 1025, 2**70):
        for error in (ValueError, RuntimeError):
            with pytest.raises(error, match=f"from 1 to 1024, got {n}"):
                pn.set_num_threads(n)
    for n in (1.5, "2", None):
        with pytest.raises(TypeError, match=f"int, not {type(n).__name__}"):
            pn.set_num_threads(n)
    assert pn.get_num_threads() == pn.config()["threads"] == 1


@pytest.mark.parametrize(("ours", "theirs", "threads"), [
    ("3", "2", 3), ("3", "nonsense", 3), ("", "2", 2), (" 7 ", "", 7), ("", "4,2", 4), ("", "99999", 1024)])
def test_the_environment_says_how_many(ours, theirs, threads):
    code = "import pyneuro as pn; print(pn.get_num_threads())"
    assert python(code, PYNEURO_NUM_THREADS=ours, OMP_NUM_THREADS=theirs) == (0, str(threads), "")


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "1025", "2,2"])
def test_an_environment_that_makes_no_sense(value):
    status, _, err = python("import pyneuro", PYNEURO_NUM_THREADS=value)
    assert status and f"PYNEURO_NUM_THREADS={value!r} is not a number from 1 to 1024" in err
    if value not in ("1025", "2,2"):                       # not our variable: a warning
        status, _, err = python("import pyneuro", PYNEURO_NUM_THREADS="", OMP_NUM_THREADS=value)
        assert status == 0 and f"OMP_NUM_THREADS={value!r} is not a number of threads; pyneuro ignores it" in err


LARGE = "pn.rand(400, 400) @ pn.rand(400, 400)"
TASKS = "len(os.listdir('/proc/self/task'))"
ALONE = {"OMP_NUM_THREADS": "", "OPENBLAS_NUM_THREADS": "1"}               # NumPy has no threads of its own then


@linux
def test_affinity_before_the_first_large_call_counts():
    code = f"""if True:
        import os, numpy, pyneuro as pn
        many = pn.get_num_threads()
        assert many == min(len(os.sched_getaffinity(0)), pn.kernels.threads.quota() or 999)
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        assert pn.get_num_threads() == 1
        {LARGE}
        assert {TASKS} == 1
        pn.set_num_threads(3)
        {LARGE}
        assert {TASKS} == 3
    """
    assert python(code, **ALONE) == (0, "", "")


@linux
def test_workers_come_with_the_first_large_call_and_go():
    code = f"""if True:
        import os, time, numpy, pyneuro as pn
        def tasks(n):
            end = time.monotonic() + 20
            while {TASKS} != n and time.monotonic() < end:
                time.sleep(0.001)
            return {TASKS}
        pn.set_num_threads(4)
        pn.rand(9, 9) @ pn.rand(9, 9)
        assert tasks(1) == 1
        for n in (4, 2, 6, 3):
            pn.set_num_threads(n)
            {LARGE}
            assert tasks(n) == n, (n, tasks(n))
    """
    assert python(code, **ALONE) == (0, "", "")


@linux
def test_the_last_to_come_are_the_first_to_go():
    """Who stays keeps its number, and so its parts: another's first parts may be the caller's own."""
    code = f"""if True:
        import os, time, numpy, pyneuro as pn
        def tasks(n):
            pn.set_num_threads(n)
            {LARGE}
            end = time.monotonic() + 20
            while {TASKS} != n and time.monotonic() < end:
                time.sleep(0.001)
            return set(os.listdir('/proc/self/task'))
        two, three = tasks(2), tasks(3)
        for n in (6, 4, 3, 9, 3):
            assert tasks(n) >= three, n
        assert tasks(2) == two
    """
    assert python(code, **ALONE) == (0, "", "")


def test_quota_of_control_groups(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def quota():
        return threads.quota(str(tmp_path / "fs"), str(tmp_path / "mine"))

    assert quota() == 0                                                    # no such thing here
    write("mine", "0::/a/b\n")
    assert quota() == 0
    write("fs/cpu.max", "max 100000\n")
    assert quota() == 0
    write("fs/a/cpu.max", "350000 100000\n")
    assert quota() == 3
    write("fs/a/b/cpu.max", "50000 100000\n")
    assert quota() == 1
    write("mine", "9:name=systemd:/\n4:cpuset:/\n2:cpu,cpuacct:/x/y\n0::/elsewhere\n")
    assert quota() == 0
    write("fs/cpu,cpuacct/x/cpu.cfs_quota_us", "-1\n")
    write("fs/cpu,cpuacct/x/cpu.cfs_period_us", "100000\n")
    assert quota() == 0
    write("fs/cpu,cpuacct/cpu.cfs_quota_us", "400000\n")                   # of a container, as it sees itself
    write("fs/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert quota() == 4


@pytest.mark.parametrize("first", ["threadpoolctl, pyneuro as pn", "pyneuro as pn, threadpoolctl",
                                   "sys; before = list(sys.meta_path); import pyneuro as pn, threadpoolctl; "
                                   "assert sys.meta_path == before"])
def test_threadpoolctl_limits_us(first):
    pytest.importorskip("threadpoolctl", minversion="3.2")
    code = f"""if True:
        import {first}
        pn.set_num_threads(3)
        [ours] = [p for p in threadpoolctl.threadpool_info() if p["internal_api"] == "pyneuro"]
        assert (ours["user_api"], ours["num_threads"]) == ("blas", 3) and "_native" in ours["filepath"], ours
        with threadpoolctl.threadpool_limits(1):
            assert pn.get_num_threads() == 1
        with threadpoolctl.threadpool_limits(2, user_api="blas"):
            assert pn.get_num_threads() == 2
        assert pn.get_num_threads() == 3
    """
    assert python(code) == (0, "", "")


def test_importing_does_not_import_threadpoolctl():
    assert python("import sys, pyneuro; print('threadpoolctl' in sys.modules, 'ctypes.util' in sys.modules)")[1] == "False False"


# ------------------------------------------------------------------------------------------------- in what surroundings

def wanted(run):
    """(operands of a large product, a function: does it still come out right?)."""
    a, b = (random(i).normal(size=(300, 300)).astype(np.float32) for i in (1, 2))
    c = np.empty_like(a)
    run("matmul", (a, b, c))

    def right():
        again = np.empty_like(c)
        run("matmul", (a, b, again))
        return again.tobytes() == c.tobytes()

    return right


def test_callers_at_the_same_time():
    pn.set_num_threads(3)
    right = wanted(make_backend("native").run)
    found = []

    def work(i):
        for _ in range(30):
            if i == 3:
                pn.set_num_threads(np.random.default_rng().integers(1, 6))
            found.append(right())

    callers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 120 and all(found)


FORKS = """if True:
    import os, sys, signal, threading, time, multiprocessing, numpy as np, pyneuro as pn
    pn.set_num_threads(3)
    x = pn.rand(300, 300)
    want = (x @ x).numpy().tobytes()
    def right(*_):
        signal.alarm(30)
        return all((x @ x).numpy().tobytes() == want for _ in range(3))
    def child(check=right):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if check() else 1)
        return os.waitpid(pid, 0)[1] == 0
"""


@linux
def test_a_child_makes_its_own_workers():
    code = FORKS + f"""
    def own():
        before = {TASKS}
        return right() and (before, {TASKS}) == (1, 3)
    assert child(own)
    assert child(lambda: right() and child(own) and child(own)), "a child's child"
    pn.set_num_threads(1)
    assert child() and right()
    """
    assert python(code, "-W", "ignore::DeprecationWarning", **ALONE)[::2] == (0, "")


@linux
def test_forks_while_others_compute():
    code = FORKS + f"""
    busy = True
    def own():
        return right() and {TASKS} == 3
    def work():
        while busy:
            x @ x
    others = [threading.Thread(target=work) for _ in range(2)]
    for t in others: t.start()
    children = []
    for _ in range(20):
        pn.set_num_threads(3)                  # also ends what rest there is for workers that came late
        x @ x
        children.append(child(own))
    busy = False
    for t in others: t.join()
    assert all(children), children
    """
    assert python(code, "-W", "ignore::DeprecationWarning", **ALONE)[::2] == (0, "")


@linux
def test_multiprocessing():
    code = FORKS + """
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(pool.map(right, range(6)))
    """
    assert python(code, "-W", "ignore::DeprecationWarning")[::2] == (0, "")


@pytest.mark.parametrize("last", [
    "", "sys.exit(3)", "os._exit(3)", "threading.Thread(target=work, daemon=True).start(); time.sleep(0.05)",
    "threading.Thread(target=work, daemon=True).start(); time.sleep(0.05); sys.exit(3)"])
def test_exit_right_after(last):
    code = f"""if True:
        import os, sys, threading, time, pyneuro as pn
        pn.set_num_threads(3)
        x = pn.rand(300, 300)
        def work():
            while True:
                x @ x
        x @ x
        {last}
    """
    assert python(code)[::2] == (3 if "3)" in last else 0, "")


def test_interrupts():
    """Signals come to the main thread, between calls; what is interrupted can go on."""
    code = """if True:
        import signal, threading, time, pyneuro as pn
        pn.set_num_threads(3)
        x = pn.rand(300, 300)
        want = (x @ x).tolist()
        def handler(*_):
            assert threading.current_thread() is threading.main_thread()
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, handler)
        for i in range(20):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.002 + i / 3000)
                while True:
                    x @ x
            except KeyboardInterrupt:
                pass
        assert (x @ x).tolist() == want
    """
    assert python(code) == (0, "", "")
