# SPDX-License-Identifier: BSD-3-Clause
"""Learning rate schedules: torch's numbers at every step, closed forms, states, what they refuse."""
import copy
import math
import warnings
from importlib import import_module

import numpy as np
import pytest
from cases import random

import pyneuro as pn
from pyneuro import nn
from pyneuro.optim import lr_scheduler, swa_utils

STEPS = 130


class Halving:
    """A function with a state of its own, which state_dict saves."""

    def __init__(self, share=0.5):
        self.share = share

    def __call__(self, epoch):
        return self.share ** (epoch // 30)


SCHEDULES = {  # a name, and the schedule of an optimizer from a module s of schedules
    "LambdaLR": lambda s, o: s.LambdaLR(o, lambda e: 0.95**e),
    "LambdaLR each": lambda s, o: s.LambdaLR(o, [lambda e: 1 / (1 + e), Halving()]),
    "MultiplicativeLR": lambda s, o: s.MultiplicativeLR(o, lambda e: 0.9 + 0.001 * e),
    "StepLR": lambda s, o: s.StepLR(o, 7),
    "StepLR gamma": lambda s, o: s.StepLR(o, step_size=11, gamma=0.7),
    "MultiStepLR": lambda s, o: s.MultiStepLR(o, [3, 10, 10, 50], gamma=0.5),
    "ConstantLR": lambda s, o: s.ConstantLR(o),
    "ConstantLR factor": lambda s, o: s.ConstantLR(o, factor=0.5, total_iters=20),
    "LinearLR": lambda s, o: s.LinearLR(o),
    "LinearLR down": lambda s, o: s.LinearLR(o, start_factor=1.0, end_factor=0.1, total_iters=40),
    "ExponentialLR": lambda s, o: s.ExponentialLR(o, 0.97),
    "PolynomialLR": lambda s, o: s.PolynomialLR(o),
    "PolynomialLR square": lambda s, o: s.PolynomialLR(o, total_iters=70, power=2.0),
    "CosineAnnealingLR": lambda s, o: s.CosineAnnealingLR(o, 13),
    "CosineAnnealingLR floor": lambda s, o: s.CosineAnnealingLR(o, T_max=50, eta_min=0.01),
    "CosineAnnealingWarmRestarts": lambda s, o: s.CosineAnnealingWarmRestarts(o, 10),
    "CosineAnnealingWarmRestarts longer": lambda s, o: s.CosineAnnealingWarmRestarts(o, T_0=4, T_mult=2, eta_min=0.001),
    "CyclicLR": lambda s, o: s.CyclicLR(o, 0.01, 0.1, step_size_up=8),
    "CyclicLR triangular2": lambda s, o: s.CyclicLR(o, 0.01, [0.1, 0.3], 8, 5, mode="triangular2"),
    "CyclicLR exp_range": lambda s, o: s.CyclicLR(o, [0.01, 0.02], 0.1, 20, mode="exp_range", gamma=0.99,
                                                  base_momentum=0.5, max_momentum=[0.8, 0.9]),
    "CyclicLR scale_fn": lambda s, o: s.CyclicLR(o, 0.01, 0.1, 8, scale_fn=lambda x: 1 / (5 ** (x * 0.0001)),
                                                 scale_mode="iterations", cycle_momentum=False),
    "CyclicLR scale_fn object": lambda s, o: s.CyclicLR(o, 0.01, 0.1, 8, scale_fn=Halving(0.9)),
    "OneCycleLR": lambda s, o: s.OneCycleLR(o, 0.1, total_steps=STEPS),
    "OneCycleLR three": lambda s, o: s.OneCycleLR(o, [0.1, 0.2], epochs=14, steps_per_epoch=10, three_phase=True,
                                                  pct_start=0.2, base_momentum=[0.6, 0.7]),
    "OneCycleLR linear": lambda s, o: s.OneCycleLR(o, 0.1, total_steps=STEPS, anneal_strategy="linear", div_factor=10,
                                                   final_div_factor=100, cycle_momentum=False),
    "ReduceLROnPlateau": lambda s, o: s.ReduceLROnPlateau(o, patience=2),
    "ReduceLROnPlateau max": lambda s, o: s.ReduceLROnPlateau(o, "max", 0.5, 1, 0.05, "abs", 3, [0.001, 0.0]),
    "ReduceLROnPlateau rel": lambda s, o: s.ReduceLROnPlateau(o, "max", 0.8, 0, threshold=0.01, cooldown=1, min_lr=1e-5),
    "ReduceLROnPlateau abs": lambda s, o: s.ReduceLROnPlateau(o, "min", 0.9, 0, threshold=0.1, threshold_mode="abs"),
    "SequentialLR": lambda s, o: s.SequentialLR(
        o, [s.LinearLR(o, 0.1, total_iters=5), s.CosineAnnealingLR(o, 40), s.ExponentialLR(o, 0.9)], [5, 45]),
    "SequentialLR of one": lambda s, o: s.SequentialLR(o, [s.StepLR(o, 3)], []),
    "SequentialLR nested": lambda s, o: s.SequentialLR(
        o, [s.SequentialLR(o, [s.ConstantLR(o, 0.5), s.StepLR(o, 2)], [3]), s.PolynomialLR(o, 30)], [9]),
    "ChainedScheduler": lambda s, o: s.ChainedScheduler([s.ConstantLR(o, 0.1, 2), s.ExponentialLR(o, 0.9)], o),
    "ChainedScheduler of three": lambda s, o: s.ChainedScheduler(
        [s.LinearLR(o), s.StepLR(o, 9, 0.6), s.CosineAnnealingLR(o, 100)]),
}
for words, options in {"": {}, " each": {"swa_lr": [0.2, 0.01], "anneal_epochs": 30}, " linear": {"anneal_strategy": "linear"},
                       " at once": {"anneal_epochs": 0}}.items():
    SCHEDULES["SWALR" + words] = lambda s, o, options=options: swa(s).SWALR(o, **{"swa_lr": 0.2} | options)
each = pytest.mark.parametrize("name", SCHEDULES)


def swa(schedules):
    """swa_utils beside a module lr_scheduler."""
    return import_module(schedules.__name__.replace("lr_scheduler", "swa_utils"))


def optimizer_of(t, kind="SGD"):
    options = {"momentum": 0.9} if kind == "SGD" else {}
    groups = [{"params": [t.zeros(2, requires_grad=True)]}, {"params": [t.ones(3, requires_grad=True)], "lr": 0.5}]
    return getattr(t.optim, kind)(groups, lr=0.05, **options)


def made(t, name, kind="SGD"):
    optimizer = optimizer_of(t, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                     # schedules within schedules step before any optimizer does
        return optimizer, SCHEDULES[name](t.optim.lr_scheduler, optimizer)


def metric(i):
    return 1 / (1 + i) + 0.3 * math.sin(i)


def numbers(optimizer, schedule):
    groups = [{k: v for k, v in g.items() if k in ("lr", "momentum", "betas", "initial_lr")} for g in optimizer.param_groups]
    return [groups, list(schedule.get_last_lr())]


def walk(optimizer, schedule, steps):
    out = [numbers(optimizer, schedule)]
    for i in steps:
        optimizer.step()
        schedule.step(*([metric(i)] if type(schedule).__name__ == "ReduceLROnPlateau" else []))
        out.append(numbers(optimizer, schedule))
    return out


@each
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_every_step_is_torchs(name, kind, torch):
    """Equal, not near: the same recursions in the same order."""
    assert walk(*made(pn, name, kind), range(STEPS)) == walk(*made(torch, name, kind), range(STEPS))


@each
def test_states_are_torchs(name, torch):
    """The same fields, and each library goes on from the other's state; functions are not in it."""
    mine, theirs = made(pn, name), made(torch, name)
    walk(*mine, range(40))
    walk(*theirs, range(40))
    state, wanted = mine[1].state_dict(), theirs[1].state_dict()
    functions = {"optimizer", "_scale_fn_custom", "mode_worse"}
    assert set(wanted) <= set(state) | functions
    again = made(pn, name)
    again[1].load_state_dict(copy.deepcopy(wanted))
    for a, b in zip(again[0].param_groups, theirs[0].param_groups):
        a.update({k: v for k, v in b.items() if k != "params"})
    back = made(torch, name)
    back[1].load_state_dict(copy.deepcopy(state))
    back[0].load_state_dict(theirs[0].state_dict())
    want = walk(*theirs, range(40, STEPS))
    assert walk(*again, range(40, STEPS)) == want
    assert walk(*back, range(40, STEPS)) == want


@each
def test_saved_and_resumed_goes_on(name):
    whole = walk(*made(pn, name), range(STEPS))
    optimizer, schedule = made(pn, name)
    walk(optimizer, schedule, range(50))
    state, groups = copy.deepcopy(schedule.state_dict()), copy.deepcopy(optimizer.state_dict())
    other, second = made(pn, name)
    second.load_state_dict(state)
    other.load_state_dict(groups)
    assert walk(other, second, range(50, STEPS)) == whole[50:]


CLOSED = [name for name in SCHEDULES if hasattr(made(pn, name)[1], "_get_closed_form_lr")]


@pytest.mark.parametrize("name", CLOSED)
def test_recursions_follow_their_closed_form(name):
    optimizer, schedule = made(pn, name)
    for _ in range(60):
        assert schedule.get_last_lr() == pytest.approx(schedule._get_closed_form_lr(), rel=1e-9, abs=1e-15)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("name", CLOSED)
def test_a_given_epoch_is_the_closed_form(name, torch):
    rates = []
    for t in (pn, torch):
        optimizer, schedule = made(t, name)
        optimizer.step()
        with pytest.warns(UserWarning, match="epoch"):
            schedule.step(17)
        rates.append(schedule.get_last_lr())
    assert rates[0] == rates[1]


@pytest.mark.parametrize("epoch", [0, 3, 4.5, 12, 27.25, 100])
def test_warm_restarts_within_epochs(epoch, torch):
    for name in ("CosineAnnealingWarmRestarts", "CosineAnnealingWarmRestarts longer"):
        schedules = [made(t, name)[1] for t in (pn, torch)]
        for s in schedules:
            s.step(epoch)
        assert numbers(schedules[0].optimizer, schedules[0]) == numbers(schedules[1].optimizer, schedules[1])


RESUMED = [n for n in SCHEDULES if n.partition("LR")[0] in ("Step", "MultiStep", "Exponential", "CosineAnnealing", "Polynomial",
                                                           "Linear", "Lambda", "Multiplicative")]


@pytest.mark.parametrize("name", RESUMED)
def test_going_on_by_last_epoch(name, torch):
    """A new schedule with last_epoch on the groups of the old one."""
    rates = []
    for t in (pn, torch):
        optimizer, schedule = made(t, name)
        walk(optimizer, schedule, range(20))
        kind = type(schedule)
        more = {"StepLR": {"step_size": 7}, "MultiStepLR": {"milestones": [3, 22]}, "ExponentialLR": {"gamma": 0.9},
                "CosineAnnealingLR": {"T_max": 30}, "PolynomialLR": {"total_iters": 50},
                "LinearLR": {"total_iters": 40}, "LambdaLR": {"lr_lambda": Halving()},
                "MultiplicativeLR": {"lr_lambda": Halving()}}[kind.__name__]
        rates.append(walk(optimizer, kind(optimizer, last_epoch=20, **more), range(20)))
    assert rates[0] == rates[1]


# ------------------------------------------------------------------------------------------------- what users do to them

def test_the_next_step_moves_by_the_new_rate():
    p = pn.zeros(1, dtype="float64", requires_grad=True)
    optimizer = pn.optim.SGD([p], lr=1.0)
    schedule = lr_scheduler.ExponentialLR(optimizer, 0.5)
    for want in (-1.0, -1.5, -1.75):
        p.grad = pn.ones(1, dtype="float64")
        optimizer.step()
        schedule.step()
        assert p.item() == want


def test_rates_that_are_tensors_keep_their_place(torch):
    rates = []
    for t in (pn, torch):
        lr = t.tensor(0.5, dtype=t.float64)
        optimizer = t.optim.SGD([t.zeros(1, requires_grad=True)], lr=lr)
        schedule = t.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        for _ in range(5):
            optimizer.step()
            schedule.step()
        assert optimizer.param_groups[0]["lr"] is lr and schedule.get_last_lr()[0] is not lr
        rates.append(float(lr))
    assert rates[0] == rates[1] == 0.125


def test_a_step_before_the_optimizers_warns():
    schedule = lr_scheduler.StepLR(optimizer_of(pn), 2)
    with pytest.warns(UserWarning, match="before optimizer"):
        schedule.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule.step()
    with pytest.warns(UserWarning, match="get_last_lr"):
        schedule.get_lr()


def test_plateau_takes_tensors():
    optimizer = optimizer_of(pn)
    schedule = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for _ in range(3):
        schedule.step(pn.tensor(1.0))
    assert schedule.get_last_lr() == pytest.approx([0.05 * 0.1**2, 0.5 * 0.1**2])


def test_plateau_grows_with_the_groups():
    optimizer = optimizer_of(pn)
    schedules = [lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, min_lr=m) for m in (0.0, [0.0, 0.0])]
    optimizer.add_param_group({"params": [pn.zeros(1, requires_grad=True)]})
    schedules[0].step(1.0), schedules[0].step(1.0)
    assert len(schedules[0].get_last_lr()) == 3
    schedules[1].step(1.0)
    with pytest.raises(RuntimeError, match="3 param groups"):
        schedules[1].step(1.0)


# ------------------------------------------------------------------------------------------------------- what is refused

REFUSED = {
    "no optimizer": lambda s, t: s.StepLR(5, 2),
    "no optimizer for a plateau": lambda s, t: s.ReduceLROnPlateau(5),
    "no optimizer for a cycle": lambda s, t: s.OneCycleLR(5, 0.1, 10),
    "no initial_lr": lambda s, t: s.StepLR(optimizer_of(t), 2, last_epoch=3),
    "lambdas": lambda s, t: s.LambdaLR(optimizer_of(t), [Halving()]),
    "factors": lambda s, t: s.MultiplicativeLR(optimizer_of(t), [Halving()]),
    "a number for a lambda": lambda s, t: s.MultiplicativeLR(optimizer_of(t), 3),
    "constant above": lambda s, t: s.ConstantLR(optimizer_of(t), 1.5),
    "constant below": lambda s, t: s.ConstantLR(optimizer_of(t), -0.5),
    "linear start": lambda s, t: s.LinearLR(optimizer_of(t), 0.0),
    "linear end": lambda s, t: s.LinearLR(optimizer_of(t), 1.0, 1.5),
    "T_0": lambda s, t: s.CosineAnnealingWarmRestarts(optimizer_of(t), 0),
    "T_mult": lambda s, t: s.CosineAnnealingWarmRestarts(optimizer_of(t), 2, T_mult=0),
    "T_mult 1.5": lambda s, t: s.CosineAnnealingWarmRestarts(optimizer_of(t), 2, T_mult=1.5),
    "negative epoch": lambda s, t: s.CosineAnnealingWarmRestarts(optimizer_of(t), 2).step(-1),
    "mode of a cycle": lambda s, t: s.CyclicLR(optimizer_of(t), 0.1, 0.2, mode="square"),
    "base_lr of a cycle": lambda s, t: s.CyclicLR(optimizer_of(t), [0.1], 0.2),
    "no momentum to cycle": lambda s, t: s.CyclicLR(optimizer_of(t, "Adagrad"), 0.1, 0.2),
    "no momentum for one cycle": lambda s, t: s.OneCycleLR(optimizer_of(t, "Adagrad"), 0.1, 10),
    "no total_steps": lambda s, t: s.OneCycleLR(optimizer_of(t), 0.1),
    "total_steps 0": lambda s, t: s.OneCycleLR(optimizer_of(t), 0.1, 0),
    "total_steps 1.5": lambda s, t: s.OneCycleLR(optimizer_of(t), 0.1, 1.5),
    "epochs 0": lambda s, t: s.OneCycleLR(optimizer_of(t), 0.1, epochs=0, steps_per_epoch=2),
    "steps_per_epoch 0": lambda s, t: s.OneCycleLR(optimizer_of(t), 0.1, epochs=2, steps_per_epoch=0),
    "pct_start": lambda s, t: s.OneCycleLR(optimizer_of(t), 0.1, 10, pct_start=1.5),
    "anneal_strategy": lambda s, t: s.OneCycleLR(optimizer_of(t), 0.1, 10, anneal_strategy="square"),
    "max_lr of one cycle": lambda s, t: s.OneCycleLR(optimizer_of(t), [0.1], 10),
    "factor": lambda s, t: s.ReduceLROnPlateau(optimizer_of(t), factor=1.0),
    "mode": lambda s, t: s.ReduceLROnPlateau(optimizer_of(t), "average"),
    "threshold_mode": lambda s, t: s.ReduceLROnPlateau(optimizer_of(t), threshold_mode="square"),
    "min_lr": lambda s, t: s.ReduceLROnPlateau(optimizer_of(t), min_lr=[0.1]),
    "none in a row": lambda s, t: s.SequentialLR(optimizer_of(t), [], []),
    "no schedulers in a row": lambda s, t: s.SequentialLR(optimizer_of(t), [3], []),
    "none at once": lambda s, t: s.ChainedScheduler([]),
    "of another optimizer": lambda s, t: s.SequentialLR(optimizer_of(t), [s.StepLR(optimizer_of(t), 2)], []),
    "of two optimizers": lambda s, t: s.ChainedScheduler([s.StepLR(optimizer_of(t), 2), s.StepLR(optimizer_of(t), 2)]),
    "plateau in a row": lambda s, t: s.SequentialLR(o := optimizer_of(t), [s.ReduceLROnPlateau(o)], []),
    "plateau at once": lambda s, t: s.ChainedScheduler([s.ReduceLROnPlateau(optimizer_of(t))]),
    "milestones": lambda s, t: s.SequentialLR(o := optimizer_of(t), [s.StepLR(o, 2), s.StepLR(o, 3)], [1, 2]),
    "no get_lr": lambda s, t: s.LRScheduler(optimizer_of(t)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_refuses_is_refused_alike(name, torch):
    with pytest.raises(Exception) as theirs:
        REFUSED[name](torch.optim.lr_scheduler, torch)
    with pytest.raises(theirs.type) as mine:
        REFUSED[name](lr_scheduler, pn)
    assert str(mine.value)


def test_one_cycle_ends():
    optimizer = optimizer_of(pn)
    schedule = lr_scheduler.OneCycleLR(optimizer, 0.1, 5)
    walk(optimizer, schedule, range(5))
    with pytest.raises(ValueError, match="total_steps=5"):
        schedule.step()


# -------------------------------------------------------------------------------------------------------- averaged models

AVERAGES = {  # arguments of AveragedModel, of a module u like swa_utils
    "default": lambda u: {}, "swa": lambda u: {"avg_fn": u.get_swa_avg_fn()}, "swa multi": lambda u: {"multi_avg_fn": u.get_swa_multi_avg_fn()},
    "ema": lambda u: {"avg_fn": u.get_ema_avg_fn(0.7)}, "ema multi": lambda u: {"multi_avg_fn": u.get_ema_multi_avg_fn(0.3)},
    "ema default": lambda u: {"multi_avg_fn": u.get_ema_multi_avg_fn()},
    "own": lambda u: {"avg_fn": lambda mean, p, n: (mean * n + p * 2) / (n + 2)},
}


def normalised(t):
    g = random("normalised")
    net = t.nn.Sequential(t.nn.Linear(3, 4), t.nn.BatchNorm1d(4), t.nn.Tanh(), t.nn.Linear(4, 1)).double()
    for p in net.parameters():
        p.data = t.tensor(g.normal(size=tuple(p.shape)))
    return net, [t.tensor(g.normal(size=(6, 3))) for _ in range(5)]


def averaged(t, arguments, use_buffers, dtype="float64"):
    """An averaged model after 5 steps of training."""
    (net, batches), u = normalised(t), import_module(f"{t.__name__}.optim.swa_utils")
    optimizer = t.optim.SGD(net.parameters(), lr=0.1)
    model = u.AveragedModel(net, use_buffers=use_buffers, **arguments(u))
    for x in batches:
        optimizer.zero_grad()
        (net(x) ** 2).mean().backward()
        optimizer.step()
        model.update_parameters(net)
    return model, net, batches, u


def as_arrays(model):
    return {k: np.asarray(v.detach()) for k, v in model.state_dict().items()}


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("name", AVERAGES)
def test_averages_are_torchs(name, use_buffers, torch):
    """Parameters and buffers; torch has the share of the new model in the default dtype."""
    arguments = AVERAGES[name]
    if name == "swa multi" and use_buffers:
        pytest.skip("torch's own fails for buffers of whole numbers: integer division with addcdiv")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        theirs = as_arrays(averaged(torch, arguments, use_buffers)[0])
    finally:
        torch.set_default_dtype(before)
    mine = as_arrays(averaged(pn, arguments, use_buffers)[0])
    assert list(mine) == list(theirs)
    for key, value in theirs.items():
        np.testing.assert_allclose(mine[key], value, rtol=1e-12, err_msg=key)
        assert mine[key].dtype == value.dtype


def test_an_average_is_the_mean_and_a_model():
    net, batches = normalised(pn)
    model = swa_utils.AveragedModel(net)
    weights, x = [], batches[0]
    for i in range(4):
        net[0].weight.data = net[0].weight.detach() * (i + 1)
        weights.append(net[0].weight.detach().numpy().copy())
        model.update_parameters(net)
    np.testing.assert_allclose(model.module[0].weight.detach().numpy(), np.mean(weights, 0), rtol=1e-14)
    assert int(model.n_averaged) == 4 and model(x).shape == net(x).shape and model.module is not net
    again = swa_utils.AveragedModel(net)
    again.load_state_dict(model.state_dict())
    assert as_arrays(again).keys() == as_arrays(model).keys() and int(again.n_averaged) == 4
    assert again.module[0].weight.tolist() == model.module[0].weight.tolist()


def test_update_bn_is_torchs(torch):
    got = []
    for t in (pn, torch):
        model, _, batches, u = averaged(t, AVERAGES["ema"], False)
        model.eval()
        u.update_bn([batches[0], (batches[1], 0), [batches[2]]], model, device="cpu")
        assert not model.training and model.module[1].momentum == 0.1
        got.append(as_arrays(model))
    for key, value in got[1].items():
        np.testing.assert_allclose(got[0][key], value, rtol=1e-9, err_msg=key)


def test_update_bn_without_norms_and_where_it_fails():
    swa_utils.update_bn(None, nn.Linear(2, 2))
    net, _ = normalised(pn)
    net.eval()
    with pytest.raises(ValueError):
        swa_utils.update_bn([pn.zeros(4, 2, dtype="float64")], net)
    assert net[1].momentum == 0.1 and not net.training


@pytest.mark.parametrize(("make", "says"), [
    (lambda o, m: swa_utils.get_ema_avg_fn(1.5), "between 0 and 1, got 1.5"),
    (lambda o, m: swa_utils.get_ema_multi_avg_fn(-0.1), "between 0 and 1, got -0.1"),
    (lambda o, m: swa_utils.AveragedModel(m, avg_fn=max, multi_avg_fn=max), "not both"),
    (lambda o, m: swa_utils.AveragedModel(m).update_parameters(nn.Linear(3, 2)), r"shapes \[\[\[3, 3\].*\[\[\[2, 3\]"),
    (lambda o, m: swa_utils.SWALR(o, 0.1, anneal_strategy="step"), "'cos' or 'linear', got 'step'"),
    (lambda o, m: swa_utils.SWALR(o, 0.1, anneal_epochs=-1), "from 0 on, got -1"),
    (lambda o, m: swa_utils.SWALR(o, 0.1, anneal_epochs=1.0), "from 0 on, got 1.0"),
    (lambda o, m: swa_utils.SWALR(o, [0.1] * 3), "3 values, the optimizer 2"),
])
def test_averages_refuse(make, says):
    with pytest.raises(ValueError, match=says):
        make(optimizer_of(pn), nn.Linear(3, 3))


def test_averages_are_compiled_and_updates_are_not():
    model, net, batches, _ = averaged(pn, AVERAGES["default"], False)
    compiled = pn.compile(model.eval())
    for _ in range(2):
        assert compiled(batches[0]).tolist() == model(batches[0]).tolist()
        model.update_parameters(net)
    with pytest.raises(pn.NotRecordable, match=r"values of a tensor.*are read"):
        pn.compile(lambda: model.update_parameters(net))()


# ------------------------------------------------------------------------------------------------------------- range test

def a_line_to_fit(dtype="float32"):
    """A model that is y = w x, its data: batches on which the loss is h (w - 3)^2 / 2 with h = 1."""
    net = nn.Linear(1, 1, bias=False, dtype=dtype)
    net.weight.data = pn.tensor([[0.0]], dtype=dtype)
    x = pn.tensor([[1.0], [-1.0]], dtype=dtype)
    return net, [(x, x * 3.0)] * 3


def half_squared(y, target):
    return ((y - target) ** 2).mean() / 2


def test_lr_finder_follows_gradient_descent():
    """Of one parameter each loss is known: w - 3 is multiplied by 1 - rate."""
    net, data = a_line_to_fit("float64")
    found = pn.optim.lr_finder(net, half_squared, pn.optim.SGD(net.parameters(), lr=0.5), data, start_lr=1e-3, end_lr=100.0,
                               num_iter=60, smoothing=0.5)
    rates = np.geomspace(1e-3, 100, 60)
    error = 3 * np.cumprod([1.0, *(1 - rates[:-1])])
    count = len(found.rates)
    np.testing.assert_allclose(found.rates, rates[:count])
    np.testing.assert_allclose(found.losses, error[:count] ** 2 / 2, rtol=1e-9)
    mean, means = 0.0, []
    for i, value in enumerate(found.losses, 1):
        mean = mean / 2 + value / 2
        means.append(mean / (1 - 0.5**i))
    np.testing.assert_allclose(found.smoothed, means)
    assert count < 60 and means[-1] > 4 * min(means) and all(m <= 4 * min(means[:i + 1]) for i, m in enumerate(means[:-1]))
    assert 0.01 < found.suggestion < 1 and found.suggestion in found.rates


@pytest.mark.parametrize("make", [
    lambda p: pn.optim.SGD(p, lr=0.3, momentum=0.9), lambda p: pn.optim.Adam(p, lr=pn.tensor(0.25)),
    lambda p: pn.optim.AdamWScheduleFree(p), lambda p: pn.optim.LBFGS(p, max_iter=3), lambda p: pn.optim.Muon(p),
    lambda p: pn.optim.SGD([{"params": p[:1], "lr": 0.1}, {"params": p[1:], "lr": 0.2}])])
@pytest.mark.parametrize("steps", [0, 2])
def test_lr_finder_leaves_everything_as_it_was(make, steps):
    pn.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.ReLU(), nn.Dropout(0.1), nn.Linear(4, 1))
    optimizer = make([net[0].weight, net[4].weight])
    data = [(pn.randn(8, 3), pn.randn(8, 1)) for _ in range(3)]

    def train(count):
        for x, y in data[:count]:
            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(net.eval()(x), y)
                loss.backward()
                return loss
            optimizer.step(closure)

    def everything():
        state = optimizer.state_dict()
        return repr([[v.tolist() for v in net.state_dict().values()], [None if p.grad is None else p.grad.tolist() for p in net.parameters()],
                     {i: {k: getattr(v, "tolist", lambda v=v: v)() for k, v in sorted(s.items())} for i, s in state["state"].items()},
                     state["param_groups"], [m.training for m in net.modules()], optimizer._opt_called])

    train(steps)
    net.train()
    net[3].eval()
    before, grads, rate = everything(), [p.grad for p in net.parameters()], optimizer.param_groups[0]["lr"]
    found = pn.optim.lr_finder(net, nn.functional.mse_loss, optimizer, data, num_iter=20, diverge=math.inf)
    assert everything() == before and len(found.losses) > 3
    assert all(p.grad is g for p, g in zip(net.parameters(), grads)) and optimizer.param_groups[0]["lr"] is rate
    with pytest.raises(ZeroDivisionError):
        pn.optim.lr_finder(net, lambda y, target: y.sum() / (1 // 0), optimizer, data)
    assert everything() == before
    train(2)


def test_lr_finder_ends_with_its_data_or_the_numbers():
    net, data = a_line_to_fit()
    sgd = pn.optim.SGD(net.parameters(), lr=0.5)
    once = pn.optim.lr_finder(net, half_squared, sgd, iter(data), num_iter=50)
    assert len(once.rates) == 3 and once.suggestion == once.suggestion
    gone = pn.optim.lr_finder(net, lambda y, target: half_squared(y, target) / 0, sgd, data)
    assert len(gone.rates) == 1 and gone.suggestion != gone.suggestion
    assert net.weight.tolist() == [[0.0]]


@pytest.mark.parametrize(("options", "error", "says"), [
    ({"start_lr": 0.0}, ValueError, "0 < start_lr"), ({"start_lr": 1.0, "end_lr": 0.1}, ValueError, "got 1.0 and 0.1"),
    ({"num_iter": 1}, ValueError, "from 2 on, got 1"), ({"num_iter": 10.0}, ValueError, "got 10.0"),
    ({"smoothing": 1.0}, ValueError, "smoothing"), ({"diverge": 1.0}, ValueError, "diverge"), ({"data": []}, ValueError, "no batch"),
    ({"model": half_squared}, TypeError, "Module as model, not function"), ({"optimizer": None}, TypeError, "Optimizer, not NoneType")])
def test_lr_finder_refuses(options, error, says):
    net, data = a_line_to_fit()
    given = {"model": net, "loss": half_squared, "optimizer": pn.optim.SGD(net.parameters()), "data": data} | options
    with pytest.raises(error, match=says):
        pn.optim.lr_finder(**given)


def test_lr_finder_is_not_recorded_and_takes_compiled_models():
    net, data = a_line_to_fit()
    sgd = pn.optim.SGD(net.parameters(), lr=0.5)
    with pytest.raises(pn.NotRecordable, match=r"SGD is tried at many rates.*test_schedules.py"):
        pn.compile(lambda: pn.optim.lr_finder(net, half_squared, sgd, data))()
    found = pn.optim.lr_finder(net, half_squared, sgd, data)
    compiled = pn.optim.lr_finder(pn.compile(net), half_squared, sgd, data)
    assert compiled.losses.tolist() == found.losses.tolist()
