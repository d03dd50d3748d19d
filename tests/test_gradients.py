# SPDX-License-Identifier: BSD-3-Clause
"""Every backward rule against finite differences: float64, on the reference, along random directions (u^T J v)."""
import copy

import numpy as np
import pytest
from cases import applied, differentiable, random, sample

import pyneuro as pn
from pyneuro.ops import OPS

RTOL, ATOL = 1e-6, 1e-8               # torch's defaults let a gradient pass that is wrong by 0.1 %; these do not
STEP = 1e-3
STENCIL = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))        # fourth order: exact to 1e-11 here
N = 40

ROWS = [pytest.param(op, id=name) for name, op in OPS.items()]
ACTIVATIONS = [pytest.param(op, id=op.name) for op in OPS.values() if op.kind == "activation"]


@pytest.fixture(autouse=True)
def reference():
    with pn.backend("reference"):
        yield


def weighted(tensors, weights):
    """One number out of many."""
    return sum((t * pn.from_numpy(w)).sum() for t, w in zip(tensors, weights))


def directions(arrays, *key):
    """A weight in +-[0.5, 1] for each element: none is overlooked."""
    rng = random(*key)
    return [np.asarray(rng.uniform(0.5, 1, a.shape) * rng.choice([-1.0, 1.0], a.shape)) for a in arrays]


def inputs_of(op, arrays):
    return [a for a, need in zip(arrays, differentiable(op, arrays)) if need]


def along(f, op, arrays, steps):
    """The derivative of f(arrays) along steps, one for each input that has a gradient."""
    total = 0.0
    for shift, factor in STENCIL:
        moved = iter(steps)
        total += factor / STEP * f([a + shift * STEP * next(moved) if need else a
                                    for a, need in zip(arrays, differentiable(op, arrays))])
    return total


def projection(op, arrays, attrs):
    """weights . op(arrays), as a tensor with a graph, and the inputs that it depends on."""
    y, given = applied(op, arrays, attrs)
    return weighted([y], directions([y], op.name, "out")), [t for t in given if t.requires_grad]


def slope(op, arrays, attrs, **mode):
    """The gradient of the projection, with zeros where there is none."""
    z, xs = projection(op, arrays, attrs)
    return pn.autograd.grad(z, xs, materialize_grads=True, allow_unused=True, **mode), xs


def first_order(op, arrays, attrs, **mode):
    """(by the rule, by differences): the derivative of the projection along a direction."""
    steps = directions(inputs_of(op, arrays), op.name, "in")
    grads, xs = slope(op, arrays, attrs, **mode)
    assert [(g.shape, g.dtype) for g in grads] == [(x.shape, x.dtype) for x in xs]
    by_rule = sum(float((g.detach().array * s).sum()) for g, s in zip(grads, steps))
    return by_rule, along(lambda a: projection(op, a, attrs)[0].item(), op, arrays, steps)


def second_order(op, arrays, attrs):
    """The same of a projection of the gradient."""
    xs = inputs_of(op, arrays)
    steps, weights = directions(xs, op.name, "in"), directions(xs, op.name, "gradient")
    grads, xs = slope(op, arrays, attrs, create_graph=True)
    z = weighted(grads, weights)
    by_rule = 0.0
    if z.requires_grad:
        seconds = pn.autograd.grad(z, xs, materialize_grads=True, allow_unused=True)
        by_rule = sum(float((g.array * s).sum()) for g, s in zip(seconds, steps))
    return by_rule, along(lambda a: weighted(slope(op, a, attrs)[0], weights).item(), op, arrays, steps)


@pytest.mark.parametrize("create_graph", [False, True], ids=["fast", "create_graph"])
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("op", ROWS)
def test_gradient(op, layout, create_graph):
    arrays, attrs = sample(op, N, layout=layout)
    assert np.allclose(*first_order(op, arrays, attrs, create_graph=create_graph), rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("op", ROWS)
def test_gradient_of_the_gradient(op):
    assert np.allclose(*second_order(op, *sample(op, N)), rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_derivatives_of_activations_have_no_end(op):
    """Each of the first five is the slope of the one before."""
    (x,), attrs = sample(op, N)

    def derivative(order, x):
        x = pn.tensor(x, requires_grad=True)
        y = x._op(op.name, attrs=attrs)
        for _ in range(order):
            if y.requires_grad:
                y, = pn.autograd.grad(y.sum(), x, create_graph=True, materialize_grads=True, allow_unused=True)
            else:
                y = pn.zeros_like(y)
        return y.detach().array

    for order in range(1, 6):
        slope = sum(factor / STEP * derivative(order - 1, x + shift * STEP) for shift, factor in STENCIL)
        np.testing.assert_allclose(derivative(order, x), slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_range_and_monotony_are_as_the_row_says(op):
    _, attrs = sample(op, N)
    x = np.r_[-np.geomspace(1e-3, 1e3, 4000)[::-1], np.linspace(-5, 5, 4001), np.geomspace(1e-3, 1e3, 4000)]
    x = np.sort(x[abs(x) < 600])
    y = pn.tensor(x)._op(op.name, attrs=attrs).array
    names = dict(zip([name for name, _ in op.params], attrs)) | {"inf": np.inf, "pi": np.pi}
    low, high = (eval(end, {}, names) for end in op.range[1:-1].split(","))
    reach = 1e-5 * (1 + abs(low) if np.isfinite(low) else 0)
    assert y.min() >= low - reach and y.max() <= high + 1e-12
    assert y.min() <= (low + 0.01 if np.isfinite(low) else -5), f"never comes near {low}"
    assert y.max() >= (high - 0.01 if np.isfinite(high) else 5), f"never comes near {high}"
    assert op.monotone == bool((np.diff(y) >= -1e-12 * np.abs(y[1:])).all())


def test_derivatives_of_composed_ops_have_no_end():
    x = pn.tensor(0.7, dtype="float64", requires_grad=True)
    y = x.exp() * x
    for order in range(1, 6):
        y, = pn.autograd.grad(y, x, create_graph=True)
        assert y.item() == pytest.approx((0.7 + order) * np.exp(0.7), rel=1e-12)


@pytest.mark.parametrize("op", ROWS)
def test_a_gradient_wrong_by_a_thousandth_is_caught(op):
    """The negative control: how sharp the tests above are."""
    arrays, attrs = sample(op, N)
    wrong = copy.copy(op)
    wrong.backward = lambda node, g: tuple(d if d is None else d * 1.001 for d in op.backward(node, g))
    by_rule, by_differences = first_order(wrong, arrays, attrs)
    no_slope = by_rule == 0 and abs(by_differences) < ATOL                  # sign
    assert no_slope or not np.allclose(by_rule, by_differences, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("name", [op.name for op in OPS.values() if op.kind == "pair_loss"])
def test_a_loss_of_tensors_that_are_made_of_each_other(name):
    (_, t), attrs = OPS[name].inputs(np.random.default_rng(0), 5)
    a, b, c = (pn.tensor(values, dtype="float64", requires_grad=True) for values in (t, t, 0.9 * t))

    def loss(x, y):
        return x._op(name, y, attrs=attrs).sum()

    first, second = pn.autograd.grad(loss(b, c), (b, c))
    chained, = pn.autograd.grad(loss(a, a * 0.9), (a,))
    np.testing.assert_allclose(chained.numpy(), (first + 0.9 * second).numpy(), rtol=1e-12, atol=1e-14)
    first, second = pn.autograd.grad(loss(b, b.detach().requires_grad_()), (b,))[0], pn.autograd.grad(loss(b.detach(), b), (b,))[0]
    np.testing.assert_allclose(pn.autograd.grad(loss(a, a), (a,))[0].numpy(), (first + second).numpy(), rtol=1e-12, atol=1e-14)
    assert pn.autograd.gradgradcheck(lambda x: loss(x, x * 0.9), (a,))
