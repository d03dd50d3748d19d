# SPDX-License-Identifier: BSD-3-Clause
"""Passes over recorded calls: each makes a shorter program with the same bits; weights that are packed follow their parameters."""
import threading
from itertools import pairwise

import numpy as np
import pytest
from cases import BACKENDS

import pyneuro as pn
from pyneuro import nn, optim, passes
from pyneuro.kernels import Native
from pyneuro.kernels.signature import KERNELS
from pyneuro.nn import functional as F
from pyneuro.passes import PASSES, STREAM, STRIDED

each_backend = pytest.mark.parametrize("on", BACKENDS, indirect=True)
ACTIVATIONS = [name for name in F.activation_names() if all(value is not None for _, value in KERNELS[name].attrs)]


def bits(arrays):
    return [(a.shape, a.dtype.str, a.tobytes()) for a in arrays]


def network(activation):
    pn.manual_seed(0)
    return nn.Linear(5, 7), nn.Linear(7, 3), getattr(F, activation)


def trained(activation, without):
    first, second, f = network(activation)
    optimizer = optim.Adam([*first.parameters(), *second.parameters()], lr=0.01)

    def step(x, labels):
        optimizer.zero_grad()
        unread = (x * 2).sum()                                  # nobody wants it
        loss = F.cross_entropy(second(f(first(x))), labels)
        loss.backward()
        optimizer.step()
        return loss, unread.detach() * 0 if without == "nothing" else loss

    compiled = pn.compile(step, without=without if without != "nothing" else ())
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(4):
        x, labels = pn.from_numpy(rng.normal(size=(40, 5)).astype("float32")), pn.from_numpy(rng.integers(0, 3, 40))
        losses.append(compiled(x, labels)[0])
    return bits([t.numpy() for t in losses] + [p.detach().numpy() for p in (*first.parameters(), *second.parameters())]), \
        compiled.plan(x, labels)


def kernels(plan):
    return [call.kernel for call in plan.calls]


@each_backend
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_layer_and_its_activation_become_one_call(on, activation):
    with_it, plan = trained(activation, ())
    without, other = trained(activation, ["activations"])
    assert with_it == without
    shorter, longer = kernels(plan), kernels(other)
    if activation != "identity":
        assert activation in longer
        assert (activation in shorter) != (f"dense_{activation}" in KERNELS), shorter


@each_backend
@pytest.mark.parametrize("name", PASSES)
def test_each_pass_by_itself(on, name, monkeypatch):
    monkeypatch.setattr(passes, "STREAM", 0)                    # the network is small
    before = ["activations"] if name == "rows" else []          # else there are no products side by side
    alone, plan = trained("tanh", [other for other in PASSES if other not in (name, *before)])
    none, longer = trained("tanh", [other for other in PASSES if other not in before])
    assert alone == none
    looks = [[(c.kernel, c.follows, c.rows, [(b.shape, b.strides, p) for b, p in zip(c.bufs, places)])
              for c, places in zip(p.calls, p.places)] for p in (plan, longer)]
    assert (looks[0] == looks[1]) == (name in STRIDED and not isinstance(on, Native))


def steps(activation, dtype, sizes, batch, without):
    pn.manual_seed(1)
    layers = [nn.Linear(n, m, dtype=dtype) for n, m in pairwise(sizes)]
    parameters = [p for layer in layers for p in layer.parameters()]
    optimizer = optim.SGD(parameters, lr=0.1, momentum=0.9)

    @pn.compile(without=without)
    def step(x, labels):
        optimizer.zero_grad()
        for layer in layers[:-1]:
            x = getattr(F, activation)(layer(x))
        loss = F.cross_entropy(layers[-1](x), labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        return loss

    rng = np.random.default_rng(0)
    for _ in range(3):
        x, labels = pn.tensor(rng.normal(size=(batch, sizes[0])), dtype=dtype), pn.from_numpy(rng.integers(0, sizes[-1], batch))
        loss = step(x, labels)
    found = [loss.detach(), *(p.detach() for p in parameters), *(p.grad for p in parameters)]
    return bits([t.numpy() for t in found]), step.plan(x, labels)


@each_backend
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("classes, batch", [(2, 16), (3, 33), (4, 64), (5, 100), (10, 32), (16, 17)])
def test_few_numbers_to_a_row_lie_by_columns(on, dtype, classes, batch):
    with_it, plan = steps("tanh", dtype, (6, 20, classes), batch, ())
    assert with_it == steps("tanh", dtype, (6, 20, classes), batch, ["columns"])[0]
    row, column = np.dtype(dtype).itemsize * classes, np.dtype(dtype).itemsize * batch
    few = isinstance(on, Native) and row <= 64 < column and row * batch <= 4096
    logits, dlogits = [next(c for c in plan.calls if c.kernel == "cross_entropy_both").bufs[slot] for slot in (1, 8)]
    assert logits.flags.f_contiguous == dlogits.flags.f_contiguous == few


@pytest.mark.parametrize("use", [lambda z: z.softmax(1).sum(), lambda z: z.square().mean(), lambda z: z.max(), lambda z: z[:, 0].sum()],
                         ids=["softmax", "square", "max", "part"])
def test_what_others_read_does_not_lie_by_columns(use):
    x, labels, layer = pn.randn(20, 6), pn.arange(20) % 3, nn.Linear(6, 3)

    def step(x, labels):
        layer.zero_grad()
        z = layer(x)
        loss = F.cross_entropy(z, labels) + use(z)
        loss.backward()
        return loss.detach(), layer.weight.grad

    compiled = pn.compile(step)
    found = [bits([t.numpy() for t in run(x, labels)]) for run in (step, compiled, compiled, compiled)]
    assert found.count(found[0]) == 4
    assert all(b.flags.c_contiguous for call in compiled.plan(x, labels).calls for b in call.bufs if call.kernel.startswith("dense"))


@each_backend
@pytest.mark.parametrize("activation", ["relu", "silu", "elu", "tanh"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes, batch", [((4, 9, 3), 5), ((40, 300, 17, 2), 33), ((3, 540, 520, 4), 350)])
def test_derivatives_follow_products(on, activation, dtype, sizes, batch):
    with_it, plan = steps(activation, dtype, sizes, batch, ())
    assert with_it == steps(activation, dtype, sizes, batch, ["derivatives"])[0] == steps(activation, dtype, sizes, batch, PASSES)[0]
    followed = [(leader.kernel, call.kernel) for leader, call in pairwise(plan.calls)
                if call.follows >= 0 and leader.kernel != "dense_grad_w"]
    assert followed == [("matmul", f"{activation}_grad")] * (len(sizes) - 2), plan
    assert len(plan.profile(1).seconds) == len(plan.calls)


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_followers_have_the_same_bits_on_any_number_of_threads(threads):
    pn.set_num_threads(1)
    alone, _ = steps("silu", "float32", (200, 520, 300, 10), 64, ())
    pn.set_num_threads(threads)
    assert steps("silu", "float32", (200, 520, 300, 10), 64, ())[0] == alone


@pytest.mark.parametrize("sizes, batch", [((200, 80, 60, 10), 600), ((150, 150, 150, 7), 500), ((96, 96, 96, 96), 600)])
def test_a_thread_takes_its_rows_through_products_to_the_same_bits(sizes, batch):
    """Also where it must do a part of them alone, because the workers are another thread's."""
    x, over = pn.ones(600, 600), threading.Event()

    def others():
        while not over.is_set():
            x @ x

    other = threading.Thread(target=others)
    try:
        pn.set_num_threads(1)
        alone, plan = steps("tanh", "float32", sizes, batch, ["rows", "optimizers"])
        assert not any(c.rows for c in plan.calls)
        _, plan = steps("tanh", "float32", sizes, batch, ["optimizers"])
        assert [c.kernel for c in plan.calls if c.rows] == ["dense_tanh", "dense_identity", "matmul"]
        for threads in 2, 3, 5:
            pn.set_num_threads(threads)
            assert all(steps("tanh", "float32", sizes, batch, ())[0] == alone for _ in range(3))
        other.start()
        assert all(steps("tanh", "float32", sizes, batch, ())[0] == alone for _ in range(40))
    finally:
        over.set()
        if other.ident:
            other.join()


@pytest.mark.skipif(not BACKENDS[1:], reason="no native kernels here")
def test_products_by_rows_are_whole_calls_where_they_run_apart():
    """As where the workers come free in the middle of a run: each with what follows it, once."""
    _, plan = steps("tanh", "float32", (150, 150, 150, 7), 500, ["optimizers"])
    program, calls = plan.replay.free[-1], plan.calls
    end = max(i for i, c in enumerate(calls) if c.kernel == "dense_grad_w") + 1
    starts = [i for i in range(end) if calls[i].follows < 0] + [end]
    found = []
    for threads, cuts in (1, [0, end]), (2, [0, end]), (1, starts), (2, starts):
        for first, last in pairwise(cuts):
            pn.set_num_threads(threads)                         # also ends what rest there is for workers that came late
            program.run(first, last)
        found.append(bits([b for c in calls[:end] if c.kernel == "dense_grad_w" for b in c.bufs[2:]]))
    assert found == found[:1] * 4


@pytest.mark.parametrize("threads", [2, 5])
def test_rows_that_are_read_on_keep_their_memory_while_others_are_behind(threads):
    """Without gradients a layer's result may lie where that of the layer before last was."""
    pn.manual_seed(0)
    deep = nn.Sequential(*[nn.Linear(96, 96) for _ in range(6)])
    x = pn.randn(600, 96)
    with pn.no_grad():
        pn.set_num_threads(1)
        alone = bits([deep(x).numpy()])
        pn.set_num_threads(threads)
        compiled = pn.compile(deep)
        assert all(bits([compiled(x).numpy()]) == alone for _ in range(50))
        assert sum(c.rows for c in compiled.plan(x).calls) == 5


@each_backend
@pytest.mark.parametrize("sizes, batch", [((1000, 301, 7), 40), ((784, 400, 200, 10), 64), ((300, 520, 4), 200), ((5, 3, 2), 1)])
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_a_step_beside_the_gradient_of_its_weights_has_the_same_bits(on, sizes, batch, threads):
    """It follows part by part: those of the threads that there are, and smaller ones that stay in cache."""
    pn.set_num_threads(threads)
    with_it, plan = steps("relu", "float32", sizes, batch, ())
    without, longer = steps("relu", "float32", sizes, batch, ["optimizers"])
    assert with_it == without
    beside = [call.kernel for leader, call in pairwise(plan.calls) if call.follows >= 0 and leader.kernel == "dense_grad_w"]
    large = sum(4 * a * b > STREAM for a, b in pairwise(sizes))
    assert beside == beside[:1] * large and set(beside) <= {"momentum", "copy"}, plan                # as the gradient is kept
    assert sorted(kernels(plan)) == sorted(kernels(longer)) and len(plan.profile(1).seconds) == len(plan.calls)


@each_backend
def test_a_gradient_that_is_read_before_its_step_stays_where_it_was(on):
    """Clipped by norm it is needed whole, and what steps the parameter twice is a step and another."""
    pn.manual_seed(0)
    model, twice = nn.Linear(300, 300), nn.Linear(4, 3)
    optimizers = [optim.Adam([*model.parameters(), *twice.parameters()]), optim.SGD(twice.parameters(), lr=0.1)]

    def step(x):
        for optimizer in optimizers:
            optimizer.zero_grad()
        (model(x).square().mean() + twice(x[:, :4]).square().mean()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        for optimizer in optimizers:
            optimizer.step()

    start = [p.detach().clone() for p in (*model.parameters(), *twice.parameters())]
    found = []
    for without in (), ["optimizers"], None:
        compiled = step if without is None else pn.compile(step, without=without)
        with pn.no_grad():
            for p, value in zip((*model.parameters(), *twice.parameters()), start):
                p.copy_(value)
        optimizers[:] = [optim.Adam([*model.parameters(), *twice.parameters()]), optim.SGD(twice.parameters(), lr=0.1)]
        pn.manual_seed(1)
        for _ in range(3):
            compiled(pn.randn(20, 300))
        found.append(bits([p.detach().numpy() for p in (*model.parameters(), *twice.parameters())]))
    assert found == found[:1] * 3


@each_backend
def test_elementwise_calls_work_in_place_only_where_nobody_reads_on(on):
    def fn(x):
        a = x.exp()
        b = a.tanh()                                            # over a
        c = b.sin()                                             # not over b, which is read again
        return b.t() * c[:3, :3] + b.t().cos() * (b + b.t())

    x = pn.linspace(-1, 1, 9).reshape(3, 3)
    plans = [pn.compile(fn, without=without) for without in ((), list(PASSES))]
    for _ in range(2):
        for compiled in plans:
            assert bits([compiled(x).numpy()]) == bits([fn(x).numpy()])
    small, large = (compiled.plan(x) for compiled in plans)
    assert small.arena_bytes <= large.arena_bytes
    first, second = (call.bufs for call in small.calls[:2])
    assert first[1].ctypes.data == second[0].ctypes.data == second[1].ctypes.data


def test_an_unknown_pass_is_refused():
    with pytest.raises(ValueError, match=r"are no passes; choose from activations"):
        pn.compile(lambda x: x, without=["speed"])


@each_backend
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_packed_weights_follow_their_parameters(on, rows):
    model = nn.Sequential(nn.Linear(40, 256), nn.Tanh(), nn.Linear(256, 3))
    fast = pn.compile(model, prepack=True)
    x = pn.randn(rows, 40)
    labels = pn.zeros(rows, dtype="int64")

    def agree():
        with pn.no_grad():
            assert bits([fast(x).numpy()]) == bits([model(x).numpy()])

    agree()
    packed = [call.bufs[1].strides[0] == 4 for call in _plan(fast, x).calls if call.kernel.startswith("dense_")]
    assert packed == [on.name != "reference"] * 2
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model(x), labels).backward()
    optimizer.step()
    agree()
    model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()})
    agree()
    with pn.no_grad():
        model[0].weight.mul_(0.5)
    agree()


def _plan(compiled, x):
    with pn.no_grad():
        return compiled.plan(x)
