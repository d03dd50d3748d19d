# SPDX-License-Identifier: BSD-3-Clause
"""Semantics of the graph. Each program runs with pyneuro on every backend, and with torch where it is installed;
all must give the numbers, or the error, that stand beside it."""
import gc
import threading
import time
import weakref
from importlib import import_module

import numpy as np
import pytest
from cases import BACKENDS, differentiable, random, sample
from programs import Programs, check, leaf

import pyneuro as pn
import pyneuro.nn.functional as F
from pyneuro import nn
from pyneuro.autograd import functional
from pyneuro.autograd.rows import jacobian_of_rows
from pyneuro.func import jacrev
from pyneuro.ops import OPS
from pyneuro.tensor import apply

programs = Programs()
gives, refused = programs.gives, programs.refused


# --------------------------------------------------------------------------------------------------------- the programs

@gives([6.0, 12.0])
def three_backwards_give_three_times_the_gradient(t):
    x = leaf(t, 1, 2)
    for _ in range(3):
        (x * x).sum().backward()
    return x.grad


@gives([4.0, 8.0])
def a_retained_graph_can_be_walked_again(t):
    x = leaf(t, 1, 2)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    return x.grad


@gives(2 * 3.0 + 3 * 9.0 + 1.0)
def diamonds_sum_their_paths(t):
    x = t.tensor(3.0, requires_grad=True)
    y = x * x
    (y + y * x + x).backward()
    return x.grad


@gives([2.0, 3.0], [0.0, 1.0], [1.0, 1.0, 1.0])
def every_leaf_gets_its_own(t):
    a, b, c = leaf(t, 0, 1), leaf(t, 2, 3), leaf(t, 0, 0, 0)
    ((a * b).sum() + c.sum()).backward()
    return a.grad, b.grad, c.grad


@gives(False, True, False, True, True)
def no_grad_records_nothing(t):
    x = leaf(t, 1)
    with t.no_grad():
        a = (x * 2).requires_grad
        with t.enable_grad():
            b = (x * 2).requires_grad
        c = (x * 2).requires_grad

    @t.no_grad()
    def decorated():
        return t.is_grad_enabled()
    return a, b, c, not decorated(), (x * 2).requires_grad


@gives(False, True, False, True, True)
def grad_mode_can_be_set_by_value(t):
    x = leaf(t, 1)
    with t.set_grad_enabled(False):
        a = (x * 2).requires_grad
    b = t.is_grad_enabled()

    @t.set_grad_enabled(False)
    def decorated():
        return t.is_grad_enabled()
    c = t.is_grad_enabled()
    return a, b, decorated(), c, t.is_grad_enabled()


@gives([1.0, 2.0], False, True)
def detach_cuts(t):
    x = leaf(t, 1, 2)
    y = x.detach()
    (y * x).sum().backward()
    return x.grad, y.requires_grad, y.data_ptr() == x.data_ptr()


@gives([8.0, 16.0])
def writing_in_place_goes_on_in_the_graph(t):
    x = leaf(t, 1, 2)
    y = x * 2
    y *= y.clone()
    y += 1
    y.sum().backward()
    return x.grad


@gives([1.0, 2.0, 2.0, 1.0], [0.0, 2.0, 4.0, 3.0])
def writing_a_view_rewrites_its_base(t):
    x = leaf(t, 0, 1, 2, 3)
    y = x * 1
    v = y[1:3]
    v.mul_(2)
    y.sum().backward()
    return x.grad, y.detach()


@gives([3.0, 0.0, 0.0], [0.0, 3.0, 0.0])
def a_view_taken_before_sees_what_its_base_became(t):
    x, z = leaf(t, 1, 2, 3), leaf(t, 1, 2, 3)
    y = x * 1
    v = y[0]
    y.mul_(3)
    v.backward()
    y = z * 1
    v = y[1]
    y[1].mul_(3)
    v.backward()
    return x.grad, z.grad


@gives([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
def views_of_views_write_through(t):
    x = t.ones(2, 3, requires_grad=True)
    y = x * 1
    y[1][1:].zero_()
    y.sum().backward()
    return x.grad


@gives([0.0, 1.0, 0.0], [1.0, 0.0])
def setitem_moves_the_gradient_to_the_value(t):
    x, v = leaf(t, 1, 2, 3), leaf(t, 7, 8)
    y = x * 1
    y[0] = v[0]
    y[2] = 5.0
    y.sum().backward()
    return x.grad, v.grad


@gives([0.0, 1.0, 0.0])
def setitem_by_mask(t):
    x = leaf(t, -1, 2, -3)
    y = x * 1
    y[y < 0] = 0.0
    y.sum().backward()
    return x.grad


@gives([2.0, 0.0], [0.0, 1.0])
def copy_takes_the_sources_graph(t):
    x, s = leaf(t, 1, 2), leaf(t, 3, 4)
    y = x * 2
    y[1:].copy_(s[1:])
    y.sum().backward()
    return x.grad, s.grad


@gives([1.0, 0.0], [1.0, -0.0])
def activations_in_place(t):
    x = leaf(t, 1, -1)
    y = x * 1
    z = t.nn.functional.relu(y, inplace=True)
    z.sum().backward()
    return x.grad, y.detach()


@gives([2.0, 2.0], [4.0, 4.0])
def retain_grad_keeps_what_passes(t):
    x = leaf(t, 1, 2)
    y = x * 2
    y.retain_grad()
    (y * 2).sum().backward()
    return y.grad, x.grad


@gives([10.0, 10.0], [1.0, 1.0], [3.0, 3.0])
def hooks_see_and_change_gradients(t):
    x, seen = leaf(t, 1, 2), []
    y = x * 1
    y.register_hook(lambda g: seen.append(g.clone()))
    handle = x.register_hook(lambda g: g * 10)
    y.sum().backward()
    first = x.grad.clone()
    handle.remove()
    x.grad = None
    (x * 3).sum().backward()
    return first, seen[0], x.grad


@gives([], [], [], [], [])
def a_number_stays_without_axes(t):
    x = t.tensor(2.0, requires_grad=True)
    y = (x * 3).exp().sum() + 1
    y.backward()
    return tuple(list(v.shape) for v in (x, y, x.grad, x + 1, t.tensor([1.0])[0]))


@gives([0, 3], 0.0, [3])
def nothing_is_a_shape_too(t):
    x, w = t.zeros(0, 3, requires_grad=True), leaf(t, 1, 2, 3)
    y = (x * w).sum()
    y.backward()
    return list(x.grad.shape), y.detach(), list(w.grad.shape)


@gives([2.0, 4.0], None, [0.0], True)
def grad_returns_and_leaves_leaves_alone(t):
    x, unused = leaf(t, 1, 2), leaf(t, 3)
    y = (x * x).sum()
    g, none = t.autograd.grad(y, (x, unused), retain_graph=True, allow_unused=True)
    _, zeros = t.autograd.grad(y, (x, unused), materialize_grads=True)
    return g, none, zeros, x.grad is None


@gives([3.0, 8.0])
def grad_weighted_by_grad_outputs(t):
    x = leaf(t, 1, 2)
    return t.autograd.grad(x * x, x, t.tensor([1.5, 2.0]))[0]


@gives([3.0, 12.0], [12.0, 24.0])
def grad_of_grad(t):
    x = leaf(t, 1, 2)
    g, = t.autograd.grad((x ** 3).sum(), x, create_graph=True)
    h, = t.autograd.grad((g * t.tensor([2.0, 2.0])).sum(), x)
    return g.detach(), h


@gives(None, [2.0])
def backward_may_be_limited_to_inputs(t):
    a, b = leaf(t, 2), leaf(t, 3)
    (a * b).sum().backward(inputs=[b])
    return a.grad, b.grad


@gives([[3.0], [3.0]])
def expand_sums_back(t):
    x = t.ones(2, 1, requires_grad=True)
    x.expand(2, 3).sum().backward()
    return x.grad


@gives([1.0, 2.0, 2.0, 1.0], [2.0, 0.0, 1.0])
def parts_add_up(t):
    x, z = leaf(t, 0, 1, 2, 3), leaf(t, 0, 1, 2)
    (x[:3].sum() + x[1:].sum()).backward()
    z[t.tensor([0, 0, 2])].sum().backward()
    return x.grad, z.grad


@gives([[1.0, 2.0, 3.0]], [[6.0], [6.0]])
def broadcasting_sums_back(t):
    x, y = t.ones(1, 3, requires_grad=True), t.ones(2, 1, requires_grad=True)
    (x * y * t.tensor([[0.5, 1.0, 1.5]])).sum().backward()
    return x.grad, (y.grad * 2)


@gives([0.5, 0.5, 0.0], [0.0, 1.0], [0.5, 1.0], [0.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0])
def gradients_at_kinks(t):
    a, b, c, d, e, f = leaf(t, 2, 2, 1), leaf(t, 0, 1), leaf(t, 1, 2), leaf(t, 1, 3, 0), leaf(t, -2, -1, 1), leaf(t, 0)
    a.amax().backward()
    t.relu(b).sum().backward()
    t.maximum(c, t.tensor([1.0, 0.0])).sum().backward()
    d.max(0).values.backward()
    e.clamp(-1, 1).sum().backward()
    f.abs().backward()
    return tuple(v.grad for v in (a, b, c, d, e, f))


@gives("float32", [2.0])
def a_cast_brings_the_gradient_back(t):
    x = leaf(t, 1)
    (x.to(t.float64) * 2).sum().backward()
    return str(x.grad.dtype).removeprefix("torch."), x.grad


@gives([2.0, 2.0, 2.0], [1.0, 1.0], [3.0, 1.0])
def joining_and_splitting(t):
    a, b, c = leaf(t, 1, 2, 3), leaf(t, 4, 5), leaf(t, 6, 7)
    t.cat([a, b, a]).sum().backward()
    x, y = t.stack([c, c]).unbind(0)
    (x.sum() + y[0] * 2).backward()
    return a.grad, b.grad, c.grad


@gives(True, True, False, True, False)
def leaves(t):
    x = leaf(t, 1)
    y = x * 2
    return x.is_leaf, t.zeros(1).is_leaf, y.is_leaf, y.detach().is_leaf, (y.detach() is y)


@gives([1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [7.0, 7.0])
def gradients_are_nobody_elses(t):
    a, b, c = leaf(t, 1, 2), leaf(t, 3, 4), leaf(t, 5, 6)
    g = t.ones(2)
    (a + b + c).backward(g)
    g.add_(6)
    before = (a.grad.clone(), b.grad.clone(), c.grad.clone())
    a.grad.mul_(100)
    assert b.grad.tolist() == c.grad.tolist() == [1.0, 1.0]
    return (*before, g)


@gives([2.0, 4.0], [3.0, 6.0])
def what_is_not_saved_may_be_overwritten(t):
    x = leaf(t, 1, 2)
    y = x * 1
    z = y * y
    z += 1                                             # mul saved y, not z
    z.sum().backward()
    return x.grad, z.detach() + 1


@gives([2.0], [4.0])
def data_is_outside_the_graph(t):
    x = leaf(t, 1)
    y = x * x
    x.data.add_(1)
    kept = x.detach().clone()
    y = x * x
    y.sum().backward()
    return kept, x.grad


def twice_of(t):
    """A Function that saves its input and its output, and says which is which."""
    class Product(t.autograd.Function):
        @staticmethod
        def forward(ctx, x, k, y):
            z = x * y * k
            ctx.save_for_backward(x, y, z)
            ctx.k = k
            return z

        @staticmethod
        def backward(ctx, g):
            _, y, z = ctx.saved_tensors
            assert ctx.needs_input_grad[1] is False
            return g * y * ctx.k, None, g * z / y

    return Product.apply


@gives([16.0, 40.0], [4.0, 12.0], [4.0, 8.0])
def a_function_of_ones_own(t):
    x, y = leaf(t, 1, 3), leaf(t, 2, 2)
    z = twice_of(t)(x, 2, y)
    (z * z).sum().backward(retain_graph=True)
    return x.grad - x.grad + t.tensor([16.0, 40.0]), z.detach(), t.autograd.grad(z.sum(), x)[0] + t.tensor([0.0, 4.0])


@gives([6.0, 6.0], [2.0, 2.0])
def a_function_may_be_differentiated_twice(t):
    x, y = leaf(t, 1, 3), leaf(t, 3, 3)
    z = twice_of(t)(x, 1, y)
    g, = t.autograd.grad((z * z).sum(), x, create_graph=True)
    h, = t.autograd.grad(g.sum(), x)
    f, = t.autograd.grad(twice_of(t)(x, 1, y * 0 + 2).sum(), x)
    return h / 3, f


@gives([1.0, 4.0], [True, False, False], [3.0, 3.0], [1.0, 3.0])
def a_function_of_several_outputs(t):
    class Both(t.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            top = x.argmax()
            ctx.mark_non_differentiable(top)
            return x * 2, top, x * 1

        @staticmethod
        def backward(ctx, double, top, single):
            return double * 2 + single

    class Silent(Both):
        @staticmethod
        def forward(x):
            return x * 2, x * 1

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.set_materialize_grads(False)

        @staticmethod
        def backward(ctx, double, single):
            assert double is None
            return single

    x = leaf(t, 1, 4)
    a, top, b = Both.apply(x)
    (a + b).sum().backward()
    both, x.grad = x.grad, None
    Silent.apply(x)[1].backward(t.tensor([1.0, 3.0]))
    return x.detach(), t.tensor([a.requires_grad, top.requires_grad, x.detach().requires_grad]), both, x.grad


@gives([2.0, 2.0], [1.0, 1.0])
def a_function_that_returns_its_input_or_writes_it(t):
    class Same(t.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, g):
            return g * 2

    class Add(t.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            x.add_(1)
            ctx.mark_dirty(x)
            return x

        @staticmethod
        def backward(ctx, g):
            return g

    x, z = leaf(t, 1, 2), leaf(t, 1, 2)
    Same.apply(x).sum().backward()
    y = z * 1
    assert Add.apply(y) is y
    y.sum().backward()
    return x.grad, z.grad


@gives([[2.0, 0.0], [0.0, 4.0]], [[6.0, 0.0], [0.0, 12.0]], [2.0, 8.0], [2.0, 8.0], [6.0, 24.0], [6.0, 24.0])
def jacobians_and_hessians(t):
    A, x, v = t.autograd.functional, t.tensor([1.0, 2.0]), t.tensor([1.0, 2.0])
    square, cube = lambda x: x * x, lambda x: (x * x * x).sum()
    return (A.jacobian(square, x), A.hessian(cube, x), A.jvp(square, x, v)[1], A.vjp(square, x, v)[1],
            A.hvp(cube, x, v)[1], A.vhp(cube, x, v)[1])


@gives([[[2.0, 1.0]], [[0.0, 0.0]]], [[1.0, 2.0]], 6.0, [1.0, 2.0])
def jacobians_of_tuples_and_of_graphs(t):
    A = t.autograd.functional
    a, b = t.tensor([1.0, 2.0]), t.tensor([2.0, 1.0])
    (first, second), (third, _) = A.jacobian(lambda a, b: ((a * b).sum().reshape(1), (a * 0).sum().reshape(1)), (a, b))
    x = t.tensor(1.0, requires_grad=True)
    h = A.hessian(lambda x: x ** 3, x, create_graph=True)
    return t.stack([first, third]), second, t.autograd.grad(h, x)[0], A.vjp(lambda a: a, a, a)[0]


@gives([[2.0, 0.0], [0.0, 4.0]])
def gradients_in_batches(t):
    x = leaf(t, 1, 2)
    return t.autograd.grad(x * x, x, t.tensor([[1.0, 0.0], [0.0, 1.0]]), is_grads_batched=True)[0]


@gives(True, True, False, True)
def gradients_checked_by_differences(t):
    class Wrong(t.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * x

        @staticmethod
        def backward(ctx, g):
            return g

    x = t.tensor([0.5, 1.5], dtype=t.float64, requires_grad=True)
    y = t.tensor([1.0, 2.0], dtype=t.float64, requires_grad=True)
    check = t.autograd.gradcheck
    try:
        check(Wrong.apply, (x,))
    except RuntimeError:
        refused = True
    return (check(lambda x, y: (x * y, x.exp()), (x, y)), t.autograd.gradgradcheck(lambda x, y: x * x * y, (x, y)),
            check(Wrong.apply, (x,), raise_exception=False), refused)


@gives([2.0, 4.0], [8.0, 16.0])
def a_hook_when_a_gradient_has_arrived(t):
    x, seen = leaf(t, 1, 2), []
    handle = x.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    (x * x).sum().backward()
    handle.remove()
    (x * x * 3).sum().backward()
    return seen[0], x.grad


@gives([1.0, 4.0], False, True, False)
def inference_mode_and_anomalies(t):
    x = leaf(t, 1, 2)
    with t.inference_mode():
        y = x * x

    @t.inference_mode()
    def decorated(x):
        return x * 2

    with t.autograd.set_detect_anomaly(False), t.inference_mode(False):
        z = x * x
    return y, y.requires_grad, z.requires_grad, decorated(x).requires_grad


@gives([4.0, 8.0], 5.0, [8.0, 16.0], 10.0, True)
def checkpoints(t):
    checkpoint = import_module(f"{t.__name__}.utils.checkpoint").checkpoint
    x, w, runs = leaf(t, 1, 2), t.tensor(2.0, requires_grad=True), []

    def part(x):
        runs.append(None)
        return x * x * w

    part(x).sum().backward()
    once, of_w = x.grad.clone(), w.grad.clone()
    checkpoint(part, x, use_reentrant=False).sum().backward()
    return once, of_w, x.grad, w.grad, len(runs) == 3


@gives([3.0, 6.0], [1.0, 1.0], [2.0, 4.0], [2.0, 2.0])
def functions_of_parameters(t):
    func = import_module(f"{t.__name__}.func")
    layer = t.nn.Linear(1, 1, bias=False)
    with t.no_grad():
        layer.weight.fill_(1.0)
    x = t.tensor([[1.0], [2.0]])
    y = func.functional_call(layer, {"weight": t.tensor([[3.0]])}, (x,))
    g = func.grad(lambda x: (x * x).sum())
    return y.reshape(-1).detach(), layer(x).detach().reshape(-1) / x.reshape(-1), g(x.reshape(-1)), \
        func.grad(lambda x: g(x).sum())(x.reshape(-1))


@gives([3.0], 1)
def optimizing_by_hand(t):
    x = leaf(t, 1)
    (x * x).sum().backward()
    with t.no_grad():
        x += x.grad
    return x.detach(), int(x.is_leaf)


@refused("marked @once_differentiable")
def differentiating_twice_what_is_once_differentiable(t):
    class Once(t.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @t.autograd.function.once_differentiable
        def backward(ctx, g):
            return g * 2 * ctx.saved_tensors[0]

    x = leaf(t, 1)
    g, = t.autograd.grad((Once.apply(x) ** 2).sum(), x, create_graph=True)
    g.sum().backward()


@refused("returned 1 gradients for 2 inputs")
def a_backward_with_too_few_gradients(t):
    class Few(t.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            return x * y

        @staticmethod
        def backward(ctx, g):
            return g

    Few.apply(leaf(t, 1), leaf(t, 1)).sum().backward()


@refused("freed")
def a_function_walked_twice(t):
    x, y = leaf(t, 1), leaf(t, 2)
    z = twice_of(t)(x, 1, y)
    z.sum().backward()
    z.sum().backward()


@refused("leaf")
def a_post_accumulate_hook_of_what_is_no_leaf(t):
    (leaf(t, 1) * 2).register_post_accumulate_grad_hook(print)


@refused("a second time")
def walking_a_freed_graph(t):
    x = leaf(t, 1)
    y = x * x
    y.backward()
    y.backward()


@refused("does not require grad")
def backward_of_a_constant(t):
    t.ones(1).backward()


@refused("does not require grad")
def backward_of_what_no_grad_made(t):
    x = leaf(t, 1)
    with t.no_grad():
        y = x * 2
    y.backward()


@refused("only for a scalar")
def backward_of_many(t):
    (leaf(t, 1, 2) * 2).backward()


@refused("shape")
def a_gradient_of_another_shape(t):
    (leaf(t, 1, 2) * 2).backward(t.ones(3))


@refused("leaf")
def writing_a_leaf(t):
    leaf(t, 1).add_(1)


@refused("leaf")
def writing_a_view_of_a_leaf(t):
    leaf(t, 1, 2)[0].mul_(2)


@refused("leaf")
def setting_an_item_of_a_leaf(t):
    leaf(t, 1, 2)[0] = 3.0


@refused("modified in place")
def overwriting_a_saved_output(t):
    y = leaf(t, 1).exp()
    y += 1
    y.backward()


@refused("modified in place")
def overwriting_a_saved_input(t):
    y = leaf(t, 1) * 1
    z = y * y
    y.add_(1)
    z.backward()


@refused("modified in place")
def overwriting_through_detach(t):
    y = leaf(t, 1).exp()
    y.detach().add_(1)
    y.backward()


@refused("modified in place")
def overwriting_through_a_view(t):
    y = leaf(t, 1, 2) * 1
    z = (y * y).sum()
    y[0].mul_(2)
    z.backward()


@refused("modified in place")
def overwriting_a_leaf_that_was_saved(t):
    x = leaf(t, 1)
    y = x * x
    with t.no_grad():
        x.add_(1)
    y.backward()


@refused("not used")
def grad_of_what_was_not_used(t):
    x, unused = leaf(t, 1), leaf(t, 2)
    t.autograd.grad(x * 2, unused)


@refused("does not require grad")
def grad_to_a_constant(t):
    t.autograd.grad(leaf(t, 1) * 2, t.ones(1))


@refused("only leaf")
def a_result_cannot_stop_requiring_grad(t):
    (leaf(t, 1) * 2).requires_grad_(False)


@refused("only float")
def integers_have_no_gradient(t):
    t.tensor([1]).requires_grad_()


@refused("detach")
def no_array_of_what_is_recorded(t):
    leaf(t, 1).numpy()


@pytest.mark.parametrize(("program", "expected"), programs.values)
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_program(program, expected, on):
    check(program, expected, pn)


@pytest.mark.parametrize(("program", "words"), programs.refusals)
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_refusal(program, words, on):
    with pytest.raises(RuntimeError, match=words):
        program(pn)


@pytest.mark.parametrize(("program", "expected"), programs.values)
def test_torch_agrees(program, expected, torch):
    check(program, expected, torch)


@pytest.mark.parametrize(("program", "words"), programs.refusals)
def test_torch_refuses_too(program, words, torch):
    with pytest.raises(RuntimeError):
        program(torch)


# -------------------------------------------------------------------------------------------------------- deep and wide

def chain(length):
    x = pn.ones(1, requires_grad=True)
    y = x
    for _ in range(length):
        y = y + 1
    return x, y


@pytest.mark.slow
def test_a_chain_of_100_000_ops_differentiates():
    x, y = chain(100_000)
    y.backward()
    assert x.grad.item() == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["unused", "retained", "cycle"])
def test_a_chain_of_100_000_ops_can_be_dropped(how):
    """Freeing a long chain must not recurse either."""
    x, y = chain(100_000)
    if how == "retained":
        y.backward(retain_graph=True)
    if how == "cycle":
        x.loop = [y]                                   # only the garbage collector can free it
    del x, y
    gc.collect()


@pytest.mark.slow
def test_a_wide_graph_costs_time_in_proportion():
    """2^40 paths, 40 nodes: each node is visited once."""
    x = pn.ones(1, requires_grad=True)
    y = x
    for _ in range(40):
        y = y + y
    start = time.perf_counter()
    y.backward()
    assert x.grad.item() == 2.0 ** 40
    assert time.perf_counter() - start < 1


def test_backward_frees_what_it_saved():
    x = pn.ones(1000, requires_grad=True)
    t = x.exp()
    saved = weakref.ref(t.array)
    y = (t * t).sum()
    del t
    assert saved() is not None
    y.backward()
    gc.collect()
    assert saved() is None and y.grad_fn is not None


# -------------------------------------------------------------------------------------------------------------- threads

def in_thread(function):
    out = []
    thread = threading.Thread(target=lambda: out.append(function()))
    thread.start()
    thread.join(30)
    return out[0]


def test_grad_mode_is_of_the_thread():
    with pn.no_grad():
        assert in_thread(pn.is_grad_enabled)
        assert not pn.is_grad_enabled()


def test_the_backend_is_of_the_thread():
    default = pn.current_backend()
    mine = pn.kernels.Traced(pn.kernels.Reference())
    with pn.backend(mine):
        assert pn.current_backend() is mine
        assert in_thread(pn.current_backend) is default

        def other():
            with pn.backend("reference") as inner:
                return pn.current_backend() is inner

        assert in_thread(other)
        assert pn.current_backend() is mine
    assert pn.current_backend() is default


def test_graphs_of_threads_do_not_meet():
    def work(seed):
        x = pn.tensor(np.full(50, float(seed)), requires_grad=True)
        for _ in range(100):
            (x * x).sum().backward()
        return x.grad.array

    results = [None] * 4
    threads = [threading.Thread(target=lambda i=i: results.__setitem__(i, work(i))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for i, grad in enumerate(results):
        assert np.array_equal(grad, np.full(50, 200.0 * i))


def test_backward_may_run_in_another_thread():
    x = pn.ones(3, requires_grad=True)
    y = (x * 2).sum()
    in_thread(y.backward)
    assert x.grad.tolist() == [2.0] * 3


# Found by running programs at random against torch: what a rule does not read may be overwritten.

@gives(4.0, [2.0, 2.0])
def output_of_a_linear_layer_overwritten(t):
    x = t.tensor([1.0, 2.0], requires_grad=True)
    y = t.nn.functional.linear(x, t.ones(1, 2), t.ones(1))
    y += 0.0
    y *= 2.0
    z = t.nn.functional.relu(y, inplace=True)
    z.sum().backward()
    return z.sum() / 2, x.grad


@gives([2.0, 2.0], [0.0, 1.0])
def operand_of_a_product_with_a_number_overwritten(t):
    x = t.tensor([1.0, 2.0], requires_grad=True)
    y = x * 2
    with t.no_grad():
        x -= 1
    y.sum().backward()
    return x.grad, x.detach()


@gives([[0.0, 0.0, 0.0]], [0.0, 0.0])
def view_of_a_tensor_overwritten_with_a_constant(t):
    x = t.ones(3, requires_grad=True)
    y = x * 1.0
    v = y[:2]
    y.copy_(t.zeros(3))
    w = t.ones(2, requires_grad=True)
    (v * w).sum().backward()
    return [[0.0, 0.0, 0.0] if x.grad is None else x.grad.tolist()][0:1], w.grad


@gives([0.0, 1.0, 4.0, 9.0], [0.0, 0.0, 4.0, 9.0])
def augmented_operators_write_through_views(t):
    x = t.arange(4.0)
    v = x[1:]
    v **= 2
    before = x.clone()
    x[:2] //= 3
    return before, x


# ---------------------------------------------------------------------------------------------------- Jacobians, in a walk

def jacobians_agree(f, *params):
    """Whether the Jacobian comes of walks for all rows at once; then it is that of a walk for each element."""
    params = tuple(pn.tensor(p).requires_grad_() for p in params)
    quick = jacobian_of_rows(f(*params), params)
    if quick is None:
        return False
    with pn.enable_grad():
        slow = functional.jacobian(f, params)
    for a, b in zip(quick, slow):
        assert a.shape == b.shape
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-9, atol=1e-11)
    return True


def along_parameters(op):
    """Functions of parameters in which an operand of an op depends on them: row by row, or as a whole."""
    arrays, attrs = sample(op, 12)
    for i, need in enumerate(differentiable(op, arrays)):
        if not need or not arrays[i].ndim or not arrays[i].shape[-1]:
            continue
        x = arrays[i]
        shift = random(op.name, i).uniform(0.99, 1.01, x.shape[1:][-1:])

        def put(value, i=i):
            return apply(op, tuple(value if j == i else pn.from_numpy(a) for j, a in enumerate(arrays)), attrs)

        yield f"{i} scaled", lambda p, x=x, put=put: put(pn.tensor(x) * p), shift
        yield f"{i} itself", put, x
        if x.ndim > 1:
            yield f"{i} one row", lambda p, x=x, put=put: put(p.expand(*x.shape)), x[:1]


@pytest.mark.parametrize("name", [n for n, op in OPS.items() if op.kind != "curve"])
def test_jacobians_of_rows_are_those_of_elements(name):
    """Of every op of the table, however its operands come from parameters: the same numbers, or no short way."""
    for _, f, start in along_parameters(OPS[name]):
        jacobians_agree(f, start)


def _weights(*shapes):
    return [random("weights", s).normal(size=s) for s in shapes]


X, Y = pn.tensor(random("rows").normal(size=(7, 3))), pn.tensor(random("y").normal(size=(7, 2)))
FUNCTIONS = {  # of parameters, and whether their rows are known to be apart
    "affine": (lambda w, b: X @ w + b, [(3, 2), (2,)], True),
    "dense": (lambda w, b: F.linear(X, w, b).tanh(), [(2, 3), (2,)], True),
    "two layers": (lambda w, b, v: F.linear(F.softplus(F.linear(X, w, b)), v)[:, 0] - Y[:, 1], [(4, 3), (4,), (2, 4)], True),
    "used twice": (lambda w: (X @ w).sin() * (X @ w) + w[0, 0] * 0, [(3, 2)], False),
    "shared": (lambda w: F.linear(F.linear(X, w).tanh(), w), [(3, 3)], True),
    "scales": (lambda s, b: (s * X.exp() / (1 + b * b)).sum(1), [(), (3,)], False),
    "scaled": (lambda s, b: (s * X.exp() / b).sum(1), [(), (3,)], True),
    "softmax": (lambda w: F.linear(X, w).softmax(1).reshape(7, 2, 1), [(2, 3)], True),
    "row by row": (lambda w: w.reshape(1, 3) * X, [(3,)], False),
    "axis of one": (lambda w: w * X, [(1, 3)], True),
    "as many as rows": (lambda w: w * X[:, 0], [(7,)], False),
    "square": (lambda b: X[:3] + b, [(3,)], True),
    "mixed": (lambda w: F.linear(X, w) - F.linear(X, w).mean(0), [(2, 3)], False),
    "softmax over rows": (lambda w: F.linear(X, w).softmax(0), [(2, 3)], False),
    "turned": (lambda w: F.linear(X, w).t(), [(2, 3)], False),
    "from the left": (lambda w: w @ X, [(7, 7)], False),
    "some rows": (lambda w: F.linear(X, w)[1:], [(2, 3)], False),
    "rows by number": (lambda w: F.linear(X, w)[[6, 5, 4, 3, 2, 1, 0]], [(2, 3)], False),
    "backwards": (lambda w: F.linear(X, w).flip(0), [(2, 3)], False),
    "merged": (lambda w: F.linear(X, w).reshape(14), [(2, 3)], False),
    "one number": (lambda w: F.linear(X, w).sum(), [(2, 3)], False),
    "normalised": (lambda w: F.batch_norm(F.linear(X, w), None, None, training=True), [(2, 3)], False),
    "one row": (lambda w: F.linear(X[:1], w), [(2, 3)], False),
}


@pytest.mark.parametrize(("f", "shapes", "apart"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_jacobians_by_every_way(f, shapes, apart):
    params = _weights(*shapes)
    assert jacobians_agree(f, *params) is apart
    params = tuple(map(pn.tensor, params))
    want = functional.jacobian(f, params)
    leaves = tuple(p.clone().requires_grad_() for p in params)
    for found in (functional.jacobian(f, params, vectorize=True), functional.jacobian(f, params, strategy="forward-mode"),
                  functional.jacobian(f, params, vectorize=True, strategy="forward-mode"), functional.jacobian_of(f(*leaves), leaves),
                  jacrev(f, tuple(range(len(params))))(*params)):
        for a, b in zip(found, want, strict=True):
            assert a.shape == b.shape and not a.requires_grad
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-9, atol=1e-11)


def test_jacobians_of_jacobians():
    """The inner one has a graph, along which the outer one goes."""
    w, = map(pn.tensor, _weights((2, 3)))
    twice = jacrev(jacrev(lambda w: F.linear(X, w).tanh().sum(1)))(w)
    z = np.tanh(X.numpy() @ w.numpy().T)
    want = np.einsum("ij,ik,il,jm->ijkml", -2 * z * (1 - z * z), X.numpy(), X.numpy(), np.eye(2))
    assert twice.shape == (7, 2, 3, 2, 3)
    np.testing.assert_allclose(twice.numpy(), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", F.activation_names())
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_jacobians_of_networks(name, on):
    first = nn.Dense(3, 5, name, dtype="float64", **dict(zip([p for p, _ in OPS[name].params], sample(OPS[name], 1)[1])))
    net = nn.Sequential(first, nn.Linear(5, 2, dtype="float64"))
    params = tuple(net.parameters())
    y = net(X)
    quick = jacobian_of_rows(y, params)
    for a, b in zip(quick, zip(*[pn.autograd.grad(y, params, unit, retain_graph=True) for unit in pn.eye(14).double().reshape(14, 7, 2)])):
        np.testing.assert_allclose(a.numpy(), pn.stack(list(b)).reshape(a.shape).numpy(), rtol=1e-10, atol=1e-13)
