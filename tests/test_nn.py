# SPDX-License-Identifier: BSD-3-Clause
"""Modules: how parameters, buffers and parts are found, saved, loaded, switched. Numbers are test_torch.py's affair."""

import copy
import pickle
from collections import OrderedDict

import numpy as np
import pytest
from cases import BACKENDS, FLOATS

import pyneuro as pn
import pyneuro.nn.functional as F
from pyneuro import nn
from pyneuro.ops import OPS

ACTIVATIONS = [op for op in OPS.values() if op.kind == "activation"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.scale = nn.Parameter(pn.ones(1))
        self.register_buffer("seen", pn.zeros(1))
        self.register_buffer("cache", pn.zeros(2), persistent=False)
        self.tied = self.first

    def forward(self, x):
        return self.second(self.first(x)) * self.scale


NAMES = ["scale", "first.weight", "first.bias", "second.0.weight", "second.0.bias"]


# ------------------------------------------------------------------------------------------------------------ mechanics


def test_names_are_found_in_order_and_once():
    net = Net()
    assert [n for n, _ in net.named_parameters()] == NAMES
    assert [n for n, _ in net.named_parameters(remove_duplicate=False)] == [*NAMES, "tied.weight", "tied.bias"]
    assert [n for n, _ in net.named_buffers()] == ["seen", "cache"]
    assert [n for n, _ in net.named_children()] == ["first", "second"]
    assert [n for n, _ in net.named_modules()] == ["", "first", "second", "second.0", "second.1"]
    assert [n for n, _ in net.named_parameters(recurse=False)] == ["scale"]
    assert [n for n, _ in net.named_parameters(prefix="net")][:2] == ["net.scale", "net.first.weight"]
    assert len(list(net.parameters())) == 5 and len(list(net.modules())) == 5
    assert net.get_submodule("second.0") is net.second[0] and net.get_parameter("first.bias") is net.first.bias


def test_attributes():
    net = Net()
    assert net.scale.requires_grad and isinstance(net.scale, nn.Parameter) and "scale" in dir(net)
    net.scale = nn.Parameter(pn.zeros(1))
    assert [n for n, _ in net.named_parameters()][0] == "scale"
    net.scale = None
    assert "scale" not in dict(net.named_parameters()) and net.scale is None
    del net.second
    assert not hasattr(net, "second")
    net.note = "text"
    assert net.note == "text"


@pytest.mark.parametrize(("act", "error"), [
    (lambda net: setattr(net, "scale", pn.ones(1)), TypeError),
    (lambda net: setattr(net, "seen", 3), TypeError),
    (lambda net: net.register_parameter("p", pn.ones(1)), TypeError),
    (lambda net: net.register_buffer("b", 1), TypeError),
    (lambda net: net.add_module("m", 1), TypeError),
    (lambda net: net.register_buffer("forward", pn.ones(1)), KeyError),
    (lambda net: net.register_buffer("", pn.ones(1)), KeyError),
    (lambda net: net.missing, AttributeError),
    (lambda net: net.get_submodule("second.7"), AttributeError),
    (lambda net: net.get_parameter("second"), AttributeError),
    (lambda net: nn.Module()(1), NotImplementedError),
    (lambda net: nn.Sequential(1), TypeError),
])
def test_what_modules_refuse(act, error):
    with pytest.raises(error):
        act(Net())


def test_parameters_before_init_are_refused():
    class Early(nn.Module):
        def __init__(self):
            self.p = nn.Parameter(pn.ones(1))

    with pytest.raises(AttributeError, match="super"):
        Early()


def test_modes_reach_every_part():
    net = Net()
    assert net.training and net.second[1].training
    assert net.eval() is net and not any(m.training for m in net.modules())
    assert net.train() is net and all(m.training for m in net.modules())


def test_apply_visits_children_first():
    seen = []
    net = Net()
    net.apply(lambda m: seen.append(type(m).__name__))
    assert seen == ["Linear", "Linear", "ReLU", "Sequential", "Net"]


def hooked(t, act):
    """What backward hooks of a module of two inputs and outputs see and change: see HOOKED."""
    class Pair(t.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = t.nn.Parameter(t.tensor([2.0, 3.0]))

        def forward(self, x, n, y=None):
            return x * self.w * n, (x if y is None else y).exp(), n

    net, seen = Pair(), []
    x, y = t.tensor([0.5, 1.0], requires_grad=True), t.tensor([0.25, 0.125], requires_grad=True)

    def told(name, result=None):
        def hook(module, *gradients):
            assert module is net
            seen.append([name, [[None if g is None else g.tolist() for g in some] for some in gradients]])
            return result(*gradients) if result else None
        return hook

    z = act(t, net, told, x, y)
    total = sum(part.sum() * (i + 1) for i, part in enumerate(z if isinstance(z, tuple) else [z]) if t.is_tensor(part))
    total.backward()
    return [seen, *[None if v.grad is None else v.grad.tolist() for v in (x, y, net.w)]]


def _listened(t, net, told, x, y):
    net.register_full_backward_hook(told("after"))
    net.register_full_backward_pre_hook(told("before"))
    return net(x * 2, 3, y * 2)


def _replaced(t, net, told, x, y):
    net.register_full_backward_hook(told("second", lambda i, o: (i[0] * 10, *i[1:])))
    net.register_full_backward_hook(told("first", lambda i, o: (o[0], None, i[2] + 1)), prepend=True)
    net.register_full_backward_pre_hook(told("before", lambda o: (o[0] * 3, *o[1:])))
    return net(x * 2, 3, y * 2)


def _removed(t, net, told, x, y):
    handles = [net.register_full_backward_hook(told(str(i))) for i in range(3)]
    handles[1].remove()
    return net(x, 2)


def _partly(t, net, told, x, y):
    net.register_full_backward_hook(told("after"))
    return net(x, 2.0, y.detach())[0]


def _keyword(t, net, told, x, y):
    net.register_full_backward_hook(told("after", lambda i, o: (i[0] * 2, None)))
    return net(x, 2, y=y)


def _no_grad(t, net, told, x, y):
    net.register_full_backward_hook(told("after"))
    with t.no_grad():
        net(x, 2)
    return x * 1


HOOKED = [_listened, _replaced, _removed, _partly, _keyword, _no_grad]


@pytest.mark.parametrize("act", HOOKED)
def test_backward_hooks_are_torchs(act, torch):
    assert hooked(pn, act) == hooked(torch, act)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_backward_hooks_where_inputs_need_no_gradient(torch):
    for t in (pn, torch):
        net = t.nn.Linear(2, 1)
        seen: list = []
        net.register_full_backward_hook(lambda m, i, o, seen=seen: seen.append((i, o[0].tolist())))
        net(t.ones(3, 2)).sum().backward()
        assert seen == [((None,), [[1.0], [1.0], [1.0]])] and net.weight.grad.tolist() == [[3.0, 3.0]]
        net.register_full_backward_hook(lambda m, i, o: (o[0],))
        with pytest.raises(RuntimeError):
            net(t.ones(3, 2)).sum().backward()


def test_backward_hooks_return_as_much_as_they_are_given():
    net = nn.Linear(2, 1)
    net.register_full_backward_hook(lambda m, i, o: (i[0], i[0]))
    with pytest.raises(RuntimeError, match="2 values for grad_input, which has 1"):
        net(pn.ones(3, 2, requires_grad=True)).sum().backward()


def test_hooks():
    net, seen = nn.Linear(2, 2), []
    before = net.register_forward_pre_hook(lambda m, args: (args[0] * 0,))
    after = net.register_forward_hook(lambda m, args, y: seen.append(y.shape))
    y = net(pn.ones(3, 2))
    assert seen == [(3, 2)] and np.array_equal(y.detach().array, np.broadcast_to(net.bias.detach().array, (3, 2)))
    doubled = net.register_forward_hook(lambda m, args, y: y * 2)
    assert np.array_equal(net(pn.ones(1, 2)).detach().array[0], 2 * net.bias.detach().array)
    for handle in (before, after, doubled):
        handle.remove()
    assert not np.array_equal(net(pn.ones(1, 2)).detach().array[0], net.bias.detach().array)
    assert len(seen) == 2


def test_sequential():
    a, b = nn.Linear(2, 3), nn.Tanh()
    s = nn.Sequential(a, b)
    assert len(s) == 2 and s[0] is a and s[-1] is b and list(s) == [a, b] and list(s[:1]) == [a]
    assert [n for n, _ in nn.Sequential(OrderedDict(x=a, y=b)).named_children()] == ["x", "y"]
    assert s.append(nn.ReLU()) is s and len(s) == 3
    x = pn.rand(4, 2)
    assert pn.equal(s[:2](x), b(a(x)))


@pytest.mark.parametrize("dtype", FLOATS)
def test_conversion_in_place(dtype):
    net = Net()
    before = list(net.parameters())
    net(pn.ones(1, 4)).sum().backward()
    assert net.to(dtype) is net
    assert [p is q for p, q in zip(net.parameters(), before)] == [True] * 5
    assert {t.dtype for t in [*net.parameters(), *net.buffers()]} == {np.dtype(dtype)}
    assert all(p.grad.dtype == dtype for p in net.parameters())
    assert net(pn.ones(1, 4, dtype=dtype)).dtype == dtype


def test_copies_and_pickles():
    net = Net()
    x = pn.rand(3, 4)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert pn.equal(twin(x), net(x))
        assert twin.tied is twin.first, "tied parts stay tied"
        with pn.no_grad():
            twin.first.weight.fill_(9)
        assert not pn.equal(twin(x), net(x))


def test_repr_shows_parts():
    text = repr(Net())
    assert "(first): Linear(in_features=4, out_features=6, bias=True)" in text and "(1): ReLU()" in text
    assert repr(nn.Dense(2, 3, "relu")) == "Dense(in_features=2, out_features=3, bias=True, activation='relu')"
    assert repr(nn.LeakyReLU(0.2)) == "LeakyReLU(negative_slope=0.2)" and "p=0.5" in repr(nn.Dropout())


def test_zero_grad_and_requires_grad():
    net = Net()
    net(pn.ones(1, 4)).sum().backward()
    net.zero_grad(set_to_none=False)
    assert all(not p.grad.array.any() for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    assert not net.requires_grad_(False)(pn.ones(1, 4)).requires_grad


# ---------------------------------------------------------------------------------------------------------------- state


def test_state_dict_holds_what_is_persistent():
    net = Net()
    state = net.state_dict()
    assert set(state) == {*NAMES, "seen", "tied.weight", "tied.bias"}
    assert np.shares_memory(state["scale"].array, net.scale.array) and not state["scale"].requires_grad
    assert list(net.state_dict(prefix="a."))[0].startswith("a.")


def test_load_state_dict_copies():
    net, other = Net(), Net()
    result = net.load_state_dict(other.state_dict())
    assert not result.missing_keys and not result.unexpected_keys
    for key, value in net.state_dict().items():
        assert pn.equal(value, other.state_dict()[key]) and not np.shares_memory(
            value.array, other.state_dict()[key].array
        )
    assert net.first.weight.requires_grad
    net.double().load_state_dict(other.state_dict())
    assert net.first.weight.dtype == np.float64


def test_load_state_dict_takes_arrays_and_may_be_lenient():
    net = Net()
    state = {"scale": np.array([5.0]), "extra": np.zeros(1)}
    result = net.load_state_dict(state, strict=False)
    assert net.scale.item() == 5 and result.unexpected_keys == ["extra"] and "first.weight" in result.missing_keys


def test_load_state_dict_may_adopt():
    net = Net()
    state = {k: v.clone() for k, v in Net().state_dict().items()}
    net.load_state_dict(state, assign=True)
    assert (
        np.shares_memory(net.scale.array, state["scale"].array)
        and isinstance(net.scale, nn.Parameter)
        and net.scale.requires_grad
    )


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda s: s.pop("scale"), 'Missing key.*"scale"'),
    (lambda s: s.update(more=pn.ones(1)), 'Unexpected key.*"more"'),
    (lambda s: s.update(scale=pn.ones(2)), r"size mismatch for scale: .*\[2\].*\[1\]"),
    (lambda s: (s.pop("seen"), s.update({"second.0.bias": pn.ones(7)})), r"(?s)Missing.*seen.*size mismatch for second.0.bias: .*\[7\]"),
    (lambda s: s.update(scale="text"), "U4"),
    (lambda s: s.update(seen=None), "object"),
])
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_that_does_not_fit_changes_nothing(spoil, words, assign):
    net = Net()
    before = {k: v.array.copy() for k, v in net.state_dict().items()}
    state = {k: v + 1 for k, v in net.state_dict().items()}
    spoil(state)
    with pytest.raises((RuntimeError, TypeError, ValueError), match=words):
        net.load_state_dict(state, assign=assign)
    assert all(np.array_equal(v.array, before[k]) for k, v in net.state_dict().items())


# --------------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("op", ACTIVATIONS, ids=lambda op: op.name)
@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_dense_is_linear_and_an_activation(op, on):
    """In one kernel, to the last bits but a few, and so the gradients."""
    attrs = op.inputs(np.random.default_rng(0), 1)[1]
    fused = nn.Dense(5, 7, op.name, dtype="float64", **dict(zip([name for name, _ in op.params], attrs)))
    plain = nn.Linear(5, 7, dtype="float64")
    plain.load_state_dict(fused.state_dict())
    x = pn.randn(4, 5, dtype="float64")
    results = []
    for f in (fused, lambda x: getattr(F, op.name)(plain(x), *attrs)):
        x.grad, x.needs_grad = None, True
        y = f(x)
        (y * y).sum().backward()
        results.append([y.detach().array, x.grad.array])
    results[0] += [fused.weight.grad.array, fused.bias.grad.array]
    results[1] += [plain.weight.grad.array, plain.bias.grad.array]
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("on", BACKENDS, indirect=True)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0,), (2, 0, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_takes_any_leading_axes(lead, bias, on):
    layer = nn.Linear(4, 5, bias=bias)
    x = pn.rand(*lead, 4, requires_grad=True) if lead else pn.rand(4, requires_grad=True)
    y = layer(x)
    assert y.shape == (*lead, 5) and (layer.bias is None) == (not bias)
    y.sum().backward()
    assert x.grad.shape == x.shape and layer.weight.grad.shape == (5, 4)
    want = x.detach().array @ layer.weight.detach().array.T + (layer.bias.detach().array if bias else 0)
    np.testing.assert_allclose(y.detach().array, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", [op for op in ACTIVATIONS if op.module], ids=lambda op: op.module)
def test_activations_in_place(op):
    x = pn.tensor([-1.0, 0.5, 2.0])
    module, attrs = getattr(nn, op.module), op.inputs(np.random.default_rng(0), 1)[1]
    try:
        made = module(*attrs, inplace=True)
    except TypeError:
        pytest.skip(f"torch's {op.module} has no inplace either")
    want = module(*attrs)(x.clone())
    assert made(x) is x and pn.equal(x, want)
    y = x.clone()
    assert getattr(F, f"{op.name}_")(y, *attrs) is y and pn.equal(y, module(*attrs)(x))


def test_dropout_is_the_identity_in_evaluation():
    x = pn.rand(5)
    assert nn.Dropout(0.9).eval()(x) is x
    assert nn.Dropout(0.0)(x) is x


def test_loss_modules_keep_weights_as_buffers():
    loss = nn.CrossEntropyLoss(weight=pn.ones(3))
    assert list(dict(loss.named_buffers())) == ["weight"] and list(loss.state_dict()) == ["weight"]
    assert loss.double().weight.dtype == np.float64
