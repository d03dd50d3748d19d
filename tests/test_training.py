# SPDX-License-Identifier: BSD-3-Clause
"""fit: the same bits as the loop that one would write, and what it adds to that loop."""
import math
import os
import signal
import subprocess
import sys
import threading
import types
from functools import partial

import numpy as np
import pytest
from cases import BACKENDS

import pyneuro as pn
from pyneuro import nn, optim
from pyneuro.metrics import accuracy
from pyneuro.nn import functional as F
from pyneuro.optim import lr_scheduler as schedule
from pyneuro.plan import Compiled
from pyneuro.training import Callback, CSVLogger, EarlyStopping, TerminateOnNaN, fit

each_backend = pytest.mark.parametrize("on", BACKENDS, indirect=True)
ROWS, FEATURES, CLASSES = 23, 5, 3


@pytest.fixture
def data(rng):
    return rng.normal(size=(ROWS, FEATURES)).astype("float32"), rng.integers(0, CLASSES, ROWS)


def network(*middle, dtype="float32"):
    pn.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, 7), nn.Tanh(), *middle, nn.Linear(7, CLASSES)).to(dtype)


def trained(X, y, *, model=None, loss=None, lr=0.05, seed=3, **more):
    """A network, and what fit says of its training."""
    model = model or network()
    history = fit(model, loss or nn.CrossEntropyLoss(), optim.Adam(model.parameters(), lr=lr), X, y, seed=seed, **more)
    return model, history


def by_hand(X, y, *, epochs, batch_size, seed=3, lr=0.05, loss=None, after_step=lambda: None, model=None):
    """The loop that one would write, and the loss of each epoch."""
    model = model or network()
    loss = loss or (lambda output, target, index: F.cross_entropy(output, target))
    optimizer, generator = optim.Adam(model.parameters(), lr=lr), pn.Generator().manual_seed(seed)
    x, target, losses = pn.from_numpy(X), pn.from_numpy(y), []
    for _ in range(epochs):
        total = 0.0
        for index in pn.randperm(len(X), generator=generator).split(batch_size):
            optimizer.zero_grad()
            value = loss(model(x[index]), target[index], index)
            value.backward()
            optimizer.step()
            total += value.item() * len(index)
        losses.append(total / len(X))
    return model, losses


def rates(model, data, scheduled, **more):
    """The learning rate at each step of a training."""
    optimizer, seen = optim.Adam(model.parameters(), lr=0.05), []
    model.register_forward_hook(lambda module, args, y: seen.append(optimizer.param_groups[0]["lr"]) if module.training else None)
    fit(model, nn.CrossEntropyLoss(), optimizer, *data, scheduler=scheduled(optimizer), batch_size=8, epochs=3, seed=3, **more)
    return seen


def same(model, other):
    return all(np.array_equal(p.detach(), q.detach()) for p, q in zip(model.parameters(), other.parameters()))


def weights(model):
    return [p.detach().clone().numpy() for p in model.parameters()]


# ------------------------------------------------------------------------------------------------------------- the loop

@each_backend
@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])              # 23 rows: also a remainder, of 3
@pytest.mark.parametrize("middle", [(), (nn.Dropout(0.3),)], ids=["plain", "dropout"])
def test_it_is_the_loop_by_hand(on, data, batch_size, middle):
    model, losses = by_hand(*data, epochs=3, batch_size=batch_size, model=network(*middle))
    fitted, history = trained(*data, epochs=3, batch_size=batch_size, model=network(*middle))
    assert same(model, fitted)
    assert history.history == {"loss": losses} and history.epoch == [0, 1, 2]


class Counting(nn.Module):
    """Every call is another one, by something that Python keeps."""

    def __init__(self, count):
        super().__init__()
        self.inner, self.count, self.calls, self.seen = network(), count, 0, []
        self.register_buffer("before", pn.zeros(1))

    def forward(self, x):
        self.count(self)
        return self.inner(x) * (1 + 0.01 * (self.calls + len(self.seen) + self.before))


@pytest.mark.parametrize("count", [lambda m: setattr(m, "calls", m.calls + 1), lambda m: m.seen.append(m.before),
                                   lambda m: setattr(m, "before", m.before + 1)], ids=["a number", "a list", "a buffer"])
def test_what_cannot_be_replayed_begins_anew_without(data, count):
    model, losses = by_hand(*data, epochs=2, batch_size=2, model=Counting(count))
    fitted, history = trained(*data, epochs=2, batch_size=2, model=Counting(count))
    assert same(model, fitted) and history.history == {"loss": losses}


def test_without_a_seed_the_default_generator_decides(data):
    runs = []
    for seed in (5, 5, 6):
        model = network()
        pn.manual_seed(seed)
        runs.append(trained(*data, epochs=2, batch_size=4, seed=None, model=model)[0])
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_without_shuffle_rows_come_in_order(data):
    seen = []
    model = network()
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].numpy()))
    trained(*data, model=model, shuffle=False, batch_size=6, epochs=2)
    assert np.array_equal(np.concatenate(seen), np.concatenate([data[0]] * 2))
    assert [len(batch) for batch in seen] == [6, 6, 6, 5] * 2


def test_every_epoch_has_an_order_of_its_own(data):
    seen = []
    model = network()
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].numpy()))
    trained(*data, model=model, batch_size=ROWS, epochs=2)
    assert not np.array_equal(*seen)
    assert all(np.array_equal(np.sort(epoch, axis=0), np.sort(data[0], axis=0)) for epoch in seen)


def test_no_epochs_train_nothing(data):
    model, history = trained(*data, epochs=0)
    assert same(model, network()) and history.history == {} and history.best is None


def _fortran(a):
    return np.asfortranarray(a)


def _byte_swapped(a):
    return a.astype(a.dtype.newbyteorder())


def _unaligned(a):
    room = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    room[...] = a
    return room


def _read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


@pytest.mark.parametrize("form", [pn.from_numpy, np.ndarray.tolist, _fortran, _byte_swapped, _unaligned, _read_only,
                                  partial(np.ndarray.astype, dtype="float64"), lambda a: pn.from_numpy(a).requires_grad_()])
def test_any_form_of_the_data_will_do(data, form):
    X, y = data
    assert same(trained(X, y, batch_size=4)[0], trained(form(X), y, batch_size=4)[0])


def test_rows_may_have_any_shape(rng):
    X, y = rng.normal(size=(ROWS, 2, 3)).astype("float32"), rng.normal(size=(ROWS, 2, 2)).astype("float32")

    def run(X):
        pn.manual_seed(0)
        return trained(X, y, model=nn.Linear(3, 2), loss=nn.MSELoss(), batch_size=4)[0]

    assert same(run(X), run(X.transpose(2, 1, 0).copy().transpose(2, 1, 0)))
    assert same(run(X), run(np.asfortranarray(X)))


@each_backend
def test_the_model_s_dtype_counts(on, data):
    model, history = trained(*data, model=network(dtype="float64"), metrics="accuracy", sample_weight=np.ones(ROWS, int))
    assert model[0].weight.dtype == np.float64 and np.isfinite(history.best["loss"])


@pytest.mark.parametrize(("kind", "seen"), [("uint8", "uint8"), ("uint16", "int64"), ("int32", "int32"), ("bool", "bool")])
def test_integers_are_not_made_floats(kind, seen):
    dtypes = set()

    def loss(output, target):
        dtypes.add(target.dtype)
        return output.sum()

    trained(np.ones((4, FEATURES), "float32"), np.ones(4, kind), loss=loss, batch_size=3)
    assert dtypes == {np.dtype(seen)}


def test_a_memory_map_is_read_by_rows(data, tmp_path):
    X, y = data
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "y.npy", y)
    mapped = [np.load(tmp_path / name, mmap_mode="r") for name in ("X.npy", "y.npy")]
    assert same(trained(*mapped, batch_size=4, epochs=2)[0], trained(X, y, batch_size=4, epochs=2)[0])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4"])
def test_a_memory_map_is_never_read_whole(tmp_path, dtype):
    """A file of 4 GB and more with holes; address space for half a GB beside it."""
    code = f"""if True:
        import resource, numpy as np, pyneuro as pn
        X = np.memmap({str(tmp_path / 'X')!r}, {dtype!r}, "w+", shape=(1 << 20, 1 << 10))
        y = np.zeros(1 << 20, "int64")
        X = np.memmap({str(tmp_path / 'X')!r}, {dtype!r}, "r", shape=(1 << 20, 1 << 10))
        model = pn.nn.Linear(1 << 10, 2)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29),) * 2)
        class Enough(Exception): pass
        steps = []
        def loss(output, target):
            steps.append(0)
            if len(steps) > 50:
                raise Enough
            return pn.nn.functional.cross_entropy(output, target)
        try:
            pn.fit(model, loss, pn.optim.SGD(model.parameters()), X, y, batch_size=16)
        except Enough:
            print("done")
    """
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=120)
    assert done.stdout == "done\n", done.stderr


# ---------------------------------------------------------------------------------------------------- losses and weights

def test_the_loss_may_be_a_function_and_smooth_labels(data):
    by_module = trained(*data, loss=nn.CrossEntropyLoss(label_smoothing=0.1))[0]
    assert same(by_module, trained(*data, loss=partial(F.cross_entropy, label_smoothing=0.1))[0])
    assert not same(by_module, trained(*data)[0])


@each_backend
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), F.cross_entropy, partial(F.cross_entropy, reduction="sum")])
def test_sample_weights(on, data, rng, loss):
    w = rng.uniform(size=ROWS).astype("float32")

    def weighted(output, target, index):
        part = pn.from_numpy(w)[index]
        return (F.cross_entropy(output, target, reduction="none") * part).sum() / part.sum().clamp(min=1e-38)

    model, _ = by_hand(*data, epochs=2, batch_size=4, loss=weighted)
    fitted, _ = trained(*data, epochs=2, batch_size=4, sample_weight=w, loss=loss)
    for p, q in zip(weights(model), weights(fitted)):
        np.testing.assert_allclose(p, q, rtol=1e-5, atol=1e-6)


def test_the_loss_of_an_epoch_weighs_every_row(data, rng):
    w = rng.uniform(size=ROWS)
    model, history = trained(*data, lr=0, batch_size=4, sample_weight=w)
    losses = F.cross_entropy(model(pn.from_numpy(data[0])), pn.from_numpy(data[1]), reduction="none").detach().numpy()
    assert history.best["loss"] == pytest.approx(np.average(losses, weights=w), rel=1e-6)
    assert trained(*data, lr=0, batch_size=4)[1].best["loss"] == pytest.approx(losses.mean(), rel=1e-6)


def test_rows_of_weight_zero_are_as_if_they_were_not_there(data):
    X, y = data
    X = np.concatenate([X, np.full((6, FEATURES), 1e3, "float32")])
    w = np.array([1.0] * ROWS + [0.0] * 6)
    fitted = trained(X, np.append(y, [0] * 6), sample_weight=w, shuffle=False, batch_size=ROWS, epochs=1, lr=0.1)
    alone = trained(*data, sample_weight=w[:ROWS], shuffle=False, batch_size=ROWS, epochs=1, lr=0.1)
    assert fitted[1].history == alone[1].history                           # the second batch has none that counts
    assert all(np.isfinite(p).all() for p in weights(fitted[0]))


def test_a_loss_of_several_numbers_a_row_is_their_mean(rng):
    X, y = rng.normal(size=(ROWS, FEATURES)).astype("float32"), rng.normal(size=(ROWS, CLASSES)).astype("float32")
    plain = trained(X, y, loss=nn.MSELoss(), lr=0)[1].best["loss"]
    assert trained(X, y, loss=nn.MSELoss(), lr=0, sample_weight=np.full(ROWS, 3.0))[1].best["loss"] == pytest.approx(plain, rel=1e-6)


# ---------------------------------------------------------------------------------------------- validation and metrics

@each_backend
def test_validation_does_not_train(on, data, rng):
    held_out = rng.normal(size=(9, FEATURES)).astype("float32"), rng.integers(0, CLASSES, 9)
    modes = []

    def model():
        made = network(nn.Dropout(0.5))
        made.register_forward_hook(lambda module, args, y: modes.append((module.training, pn.is_grad_enabled())))
        return made

    plain = trained(*data, batch_size=8, epochs=2, model=model())[0]
    modes.clear()
    validated, history = trained(*data, batch_size=8, epochs=2, model=model(), validation_data=held_out, metrics="accuracy")
    assert modes == ([(True, True)] * 3 + [(False, False)] * 2) * 2
    assert same(plain, validated) and validated.training
    validated.eval()
    output, target = validated(pn.from_numpy(held_out[0])), pn.from_numpy(held_out[1])
    assert history.history["val_loss"][-1] == pytest.approx(F.cross_entropy(output, target).item(), rel=1e-6)
    assert history.history["val_accuracy"][-1] == accuracy(output, target)
    assert list(history.history) == ["loss", "accuracy", "val_loss", "val_accuracy"]


def test_validation_may_have_weights(data, rng):
    w = rng.uniform(size=ROWS)
    _, history = trained(*data, lr=0, batch_size=4, validation_data=(*data, w), sample_weight=w)
    assert history.history["val_loss"] == pytest.approx(history.history["loss"], rel=1e-6)


def test_metrics_are_of_the_whole_epoch(data):
    def right(output, target):
        assert len(output) == len(target) == ROWS
        return (output.argmax(1) == target).float().mean()

    model, history = trained(*data, batch_size=4, lr=0, metrics=["accuracy", right])
    assert history.best["accuracy"] == pytest.approx(history.best["right"])
    assert history.best["accuracy"] == accuracy(model(pn.from_numpy(data[0])), data[1])


def test_modes_are_left_as_they_were(data):
    model = network(nn.Dropout(0.5))
    model.eval()
    trained(*data, model=model)
    assert not any(module.training for module in model.modules())
    model.train()
    model[2].eval()                                                       # frozen by its owner
    trained(*data, model=model, validation_data=data)
    assert model.training and not model[2].training


@each_backend
@pytest.mark.parametrize("dtype", ["uint8", "float64", "float32", "int64", "int16"])
@pytest.mark.parametrize("epochs", [1, 6])                         # too few steps for a plan, and enough
def test_rows_are_normalized_as_they_are_read(on, tmp_path, rng, dtype, epochs):
    X = np.memmap(tmp_path / "X", dtype, "w+", shape=(ROWS, FEATURES, 2))
    X[...] = rng.integers(0, 256, X.shape)
    y, mean, std = rng.integers(0, CLASSES, ROWS), rng.uniform(100, 150, (FEATURES, 1)).astype("float32"), 57.5
    finished = (X.astype("float32") - mean) / np.float32(std)

    def run(X, **more):
        pn.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(2 * FEATURES, CLASSES))
        return trained(X, y, model=model, epochs=epochs, batch_size=4, validation_data=(X, y), metrics="accuracy", **more)

    (model, history), (other, expected) = run(X, normalize=(mean, std)), run(finished)
    assert same(model, other) and history.history == expected.history


# ------------------------------------------------------------------------------------------- learning rates and clipping

@pytest.mark.parametrize("scheduled", [lambda o: schedule.OneCycleLR(o, 0.1, epochs=3, steps_per_epoch=3),
                                       lambda o: schedule.CyclicLR(o, 0.01, 0.1, 4, cycle_momentum=False)])
def test_some_schedules_go_by_steps(data, scheduled):
    optimizer = optim.Adam(network().parameters())
    scheduler, want = scheduled(optimizer), []
    for _ in range(9):
        want.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(network(), data, scheduled) == want


@each_backend
@pytest.mark.parametrize("scheduled, calls", [
    (lambda o: schedule.OneCycleLR(o, 0.1, epochs=6, steps_per_epoch=6), 6),
    (lambda o: schedule.CyclicLR(o, 0.01, 0.1, 4, base_momentum=0, max_momentum=0.9), None),   # sgd takes another kernel at 0
])
def test_epochs_of_schedules_that_go_by_steps_are_replayed(on, data, monkeypatch, scheduled, calls):
    seen = []

    def loop(plan, *arguments):
        seen.append(plan)
        return whole(plan, *arguments)

    def run():
        model = network()
        optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        scheduler = scheduled(optimizer)
        fit(model, nn.CrossEntropyLoss(), optimizer, *data, scheduler=scheduler, batch_size=4, epochs=6, seed=3)
        group = optimizer.param_groups[0]
        return model, (group["lr"], group["momentum"], scheduler.last_epoch)

    whole = Compiled.loop
    monkeypatch.setattr(Compiled, "loop", loop)
    replayed, end = run()
    assert calls is None or len(seen) in (0, calls)             # one for each epoch; on the reference, none
    monkeypatch.setattr("pyneuro.plan.ENABLED", False)
    eager, same_end = run()
    assert same(replayed, eager) and end == same_end


@each_backend
def test_a_loss_that_reads_what_a_schedule_changes_at_each_step(on, data, monkeypatch):
    def run():
        model = network()
        optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        scheduler = schedule.OneCycleLR(optimizer, 0.1, total_steps=36)
        history = fit(model, lambda output, target: F.cross_entropy(output, target) * (1 + scheduler.get_last_lr()[0]), optimizer,
                      *data, scheduler=scheduler, batch_size=4, epochs=6, seed=3)
        return model, history.history

    replayed, losses = run()
    monkeypatch.setattr("pyneuro.plan.ENABLED", False)
    eager, same_losses = run()
    assert same(replayed, eager) and losses == same_losses


def test_most_schedules_go_by_epochs(data):
    assert rates(network(), data, lambda o: schedule.StepLR(o, 1, 0.5)) == [0.05] * 3 + [0.025] * 3 + [0.0125] * 3


def test_a_plateau_is_seen_in_the_validated_loss(data):
    class Told(schedule.ReduceLROnPlateau):
        def step(self, metrics):
            told.append(metrics)
            super().step(metrics)

    told = []
    model, history = trained(*data)
    for held_out, name in ((None, "loss"), (data, "val_loss")):
        model = network()
        optimizer = optim.Adam(model.parameters())
        told.clear()
        history = fit(model, nn.CrossEntropyLoss(), optimizer, *data, epochs=3, validation_data=held_out, scheduler=Told(optimizer))
        assert told == history.history[name]


@each_backend
def test_gradients_are_clipped_together(on, data):
    model = network()
    optimizer, x, y = optim.SGD(model.parameters(), lr=1.0), *map(pn.from_numpy, data)
    F.cross_entropy(model(x), y).backward()
    assert nn.utils.clip_grad_norm_(model.parameters(), 0.01) > 0.01
    optimizer.step()
    clipped = network()
    fit(clipped, nn.CrossEntropyLoss(), optim.SGD(clipped.parameters(), lr=1.0), *data, batch_size=ROWS, shuffle=False, clip_grad_norm=0.01)
    assert same(model, clipped) and not same(model, network())


class Twice(optim.SGD):
    """An optimizer that needs the loss again, as LBFGS does."""

    def step(self, closure):
        first = closure()
        super().step()
        closure()
        super().step()
        return first


def test_an_optimizer_may_need_the_loss_again(data):
    model, other = network(), network()
    history = fit(model, nn.CrossEntropyLoss(), Twice(model.parameters(), lr=0.1), *data, batch_size=ROWS, shuffle=False)
    plain = fit(other, nn.CrossEntropyLoss(), optim.SGD(other.parameters(), lr=0.1), *data, batch_size=ROWS, shuffle=False, epochs=2)
    assert same(model, other) and history.history["loss"] == plain.history["loss"][:1]


@pytest.mark.parametrize("make", [lambda p: optim.LBFGS(p, max_iter=5, line_search_fn="strong_wolfe"),
                                  lambda p: optim.GradientDescent(p, line_search_fn="armijo")])
def test_optimizers_that_search_fit(make, data):
    """The same as by hand on the whole of the data, and lower from epoch to epoch."""
    model, other, loss_of = network(), network(), nn.CrossEntropyLoss()
    history = fit(model, loss_of, make(model.parameters()), *data, batch_size=ROWS, shuffle=False, epochs=8)
    losses = history.history["loss"]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.9 * losses[0]
    optimizer, (x, y) = make(other.parameters()), map(pn.tensor, data)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(other(x.float()), y)
        loss.backward()
        return loss

    for want in losses:
        assert optimizer.step(closure).item() == pytest.approx(want, rel=1e-4)


def test_fit_does_not_take_least_squares(data):
    model = network()
    with pytest.raises(ValueError, match="must not call backward"):
        fit(model, nn.CrossEntropyLoss(), optim.LevenbergMarquardt(model.parameters()), *data)


# ------------------------------------------------------------------------------------------------------------ callbacks

def test_callbacks_are_called_in_order(data):
    calls = []

    class Mine(Callback):
        def on_train_begin(self):
            calls.append((self.names, self.model, type(self.optimizer)))

        def on_epoch_begin(self, epoch):
            calls.append(epoch)

        def on_train_end(self):
            calls.append("end")

    told = []
    given = Callback(on_epoch_end=lambda epoch, logs: told.append((epoch, logs["loss"])) or epoch == 1)
    model, history = trained(*data, epochs=5, callbacks=[Mine(), given, Mine()])
    assert calls == [(("loss",), model, optim.Adam)] * 2 + [0, 0, 1, 1, "end", "end"]
    assert told == list(zip(history.epoch, history.history["loss"])) and history.epoch == [0, 1]


def test_logs_are_the_callback_s_own(data):
    _, history = trained(*data, callbacks=[Callback(on_epoch_end=lambda epoch, logs: logs.clear())])
    assert list(history.history) == ["loss"]


class Scripted(nn.Module):
    """Its loss, whatever the data, is the next of these; its parameter counts the steps."""

    def __init__(self, losses):
        super().__init__()
        self.count, self.losses = nn.Parameter(pn.zeros(1)), iter(losses)

    def forward(self, x):
        return self.count.sum() * -1 + next(self.losses)

    def fit(self, *callbacks, epochs=100, **more):
        def loss(output, target):
            return output + (self.count.detach().sum())              # the value is the script's, the gradient -1

        return fit(self, loss, optim.SGD([self.count], lr=1), np.zeros((1, 1)), np.zeros(1), epochs=epochs,
                   callbacks=callbacks, **more)


@pytest.mark.parametrize(("options", "losses", "stopped", "best"), [
    ({}, [3, 2, 1, 1, 0], 3, 2),
    ({"patience": 1}, [3, 2, 1, 1, 0], 3, 2),
    ({"patience": 2}, [3, 2, 4, 1, 5, 5, 0], 5, 3),
    ({"min_delta": 1}, [3, 1, 0.5, 0], 2, 1),
    ({"min_delta": -1}, [3, 1, 0.5, 0], 2, 1),
    ({"mode": "max"}, [1, 2, 3, 2, 9], 3, 2),
    ({}, [1, math.nan, 0], 1, 0),
    ({"patience": 3}, [3, 2, 1], None, 2),
])
def test_early_stopping(options, losses, stopped, best):
    early = EarlyStopping("loss", **options)
    history = Scripted(losses).fit(early, epochs=len(losses))
    assert (early.stopped_epoch, early.best_epoch, early.best) == (stopped, best, losses[best])
    assert history.epoch[-1] == (len(losses) - 1 if stopped is None else stopped)


@pytest.mark.parametrize("losses", [[3, 1, 2, 2, 2], [3, 1, 2]])
def test_the_best_weights_come_back(losses):
    model = Scripted(losses)
    model.fit(EarlyStopping("loss", patience=3, restore_best_weights=True), epochs=len(losses))
    assert model.count.item() == 2
    model = Scripted(losses)
    model.fit(EarlyStopping("loss", patience=3), epochs=len(losses))
    assert model.count.item() == len(losses)


def test_early_stopping_can_be_used_again():
    early = EarlyStopping("loss")
    for _ in range(2):
        Scripted([2, 1, 1, 1]).fit(early)
        assert early.stopped_epoch == 2


def test_growing_and_falling_values_are_told_apart():
    assert [EarlyStopping(name).sign for name in ("val_loss", "val_accuracy", "f1_score", "mean_squared_error")] == [1, -1, -1, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_terminate_on_nan(bad):
    history = Scripted([3, 2, bad, 1]).fit(TerminateOnNaN())
    assert history.epoch == [0, 1, 2]


def test_best_is_of_the_epochs_that_have_a_loss():
    history = Scripted([math.nan, 2, 1, 3]).fit(epochs=4)
    assert history.best == {"epoch": 2, "loss": 1}
    assert repr(history) == "History(epochs=4, best={'epoch': 2, 'loss': 1.0})"
    assert Scripted([math.nan]).fit(epochs=1).best is None


def test_csv_logger(data, tmp_path):
    path = tmp_path / "log.csv"
    for append, lines in ((False, 3), (True, 5), (False, 3)):
        _, history = trained(*data, epochs=2, metrics="accuracy", callbacks=[CSVLogger(path, ";", append)])
        text = path.read_text().splitlines()
        assert len(text) == lines and text[0] == "epoch;loss;accuracy"
        assert [float(v) for v in text[-1].split(";")] == [1, history.history["loss"][1], history.history["accuracy"][1]]


# --------------------------------------------------------------------------------------------------------- interruption

def steps_of(parameters, data, batch_size, limit=40):
    """After how many steps by hand these are the parameters, or None."""
    states = [weights(network())]
    model = network()
    optimizer, generator = optim.Adam(model.parameters(), lr=0.05), pn.Generator().manual_seed(3)
    x, target = map(pn.from_numpy, data)
    while len(states) < limit:
        for index in pn.randperm(len(x), generator=generator).split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), target[index]).backward()
            optimizer.step()
            states.append(weights(model))
    return next((i for i, state in enumerate(states) if all(map(np.array_equal, state, parameters))), None)


def press():
    os.kill(os.getpid(), signal.SIGINT)


@each_backend
@pytest.mark.parametrize("where", ["forward", "loss", "epoch end", "step", "between two parameters"])
def test_ctrl_c_leaves_whole_steps(on, data, monkeypatch, where):
    monkeypatch.setattr("pyneuro.plan.ENABLED", False)         # calls of Python functions are counted, which a replay does not make
    model, calls = network(), []

    def at(place, count):
        calls.append(place)
        if place == where and calls.count(place) == count:
            press()

    def loss(output, target):
        at("loss", 8)
        return F.cross_entropy(output, target)

    model.register_forward_hook(lambda module, args, y: at("forward", 8))
    groups = [{"params": layer.parameters()} for layer in (model[0], model[2])]
    optimizer = optim.Adam(groups, lr=0.05)
    whole_step, one_group = optimizer.step, optimizer._step

    def step():
        at("step", 8)
        return whole_step()

    def group_step(group, active):
        one_group(group, active)
        at("between two parameters", 15)

    monkeypatch.setattr(optimizer, "step", step)
    monkeypatch.setattr(optimizer, "_step", group_step)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(model, loss, optimizer, *data, batch_size=4, epochs=4, seed=3,
            callbacks=[Callback(on_epoch_end=lambda epoch, logs: at("epoch end", 2))])
    assert signal.getsignal(signal.SIGINT) == before
    assert steps_of(weights(model), data, 4) == {"forward": 7, "loss": 7, "epoch end": 12}.get(where, 8)


@each_backend
def test_ctrl_c_in_a_replay_leaves_whole_steps(on):
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(4096, 64)).astype("float32"), rng.integers(0, 3, 4096)

    def model_and_optimizer():
        pn.manual_seed(1)
        model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 3))
        return model, optim.Adam(model.parameters())

    model, optimizer = model_and_optimizer()
    threading.Timer(0.5, press).start()
    with pytest.raises(KeyboardInterrupt):
        fit(model, F.cross_entropy, optimizer, x, target, batch_size=256, shuffle=False, epochs=100_000)
    steps = int(optimizer.state[model[0].weight]["step"])
    assert steps > 0
    again, optimizer = model_and_optimizer()
    compiled = pn.compile(lambda x, y: [optimizer.zero_grad(), F.cross_entropy(again(x), y).backward(), optimizer.step()])
    for i in range(steps):
        rows = slice(i % 16 * 256, i % 16 * 256 + 256)
        compiled(pn.from_numpy(x[rows]), pn.from_numpy(target[rows]))
    assert all(map(np.array_equal, weights(model), weights(again)))


def test_a_handler_that_was_there_is_used(data):
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(1))
    try:
        model = network()
        model.register_forward_hook(lambda *_: press())
        _, history = trained(*data, model=model, batch_size=8, epochs=2)
        assert len(came) == 6 and history.epoch == [0, 1]
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_trains_in_a_thread(data):
    found = []
    thread = threading.Thread(target=lambda: found.append(trained(*data)[0]))
    thread.start()
    thread.join()
    assert same(found[0], trained(*data)[0])


def test_a_real_ctrl_c():
    code = """if True:
        import numpy as np, pyneuro as pn
        from pyneuro.training import Callback
        pn.manual_seed(0)
        X, y = np.random.default_rng(0).normal(size=(512, 8)).astype("float32"), np.zeros(512, "int64")
        model = pn.nn.Linear(8, 2)
        optimizer = pn.optim.Adam(model.parameters())
        try:
            pn.fit(model, pn.nn.CrossEntropyLoss(), optimizer, X, y, epochs=1_000_000, progress=False,
                   callbacks=[Callback(on_epoch_begin=lambda epoch: print(epoch, flush=True))])
        except KeyboardInterrupt:
            counts = {float(s["step"]) for s in optimizer.state_dict()["state"].values()}
            print("whole" if len(counts) == 1 else counts)
    """
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], text=True, stdout=subprocess.PIPE)
    assert [process.stdout.readline() for _ in range(2)] == ["0\n", "1\n"]
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and out.splitlines()[-1] == "whole"


def test_an_exception_leaves_modes_and_handler(data):
    model = network().eval()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError):
        trained(*data, model=model, callbacks=[Callback(on_epoch_end=lambda epoch, logs: 1 / 0)])
    assert not model.training and signal.getsignal(signal.SIGINT) == before


# ------------------------------------------------------------------------------------------------------------- progress

@pytest.fixture
def bars(monkeypatch):
    """What a tqdm would have been told."""
    made = []

    class tqdm:
        def __init__(self, **options):
            self.options, self.count, self.closed = options, 0, False
            made.append(self)

        def update(self, steps):
            self.count += steps

        def set_postfix(self, logs):
            self.logs = logs

        def close(self):
            self.closed = True

    monkeypatch.setitem(sys.modules, "tqdm", types.SimpleNamespace(tqdm=tqdm))
    return made


def test_a_bar_counts_steps_and_waits_two_seconds(data, bars):
    _, history = trained(*data, batch_size=5, epochs=2, progress=True)
    bar, = bars
    assert bar.options["delay"] == 2 and bar.options["total"] == bar.count == 10 and bar.closed
    assert bar.logs == {"loss": history.history["loss"][1]}


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_for_terminals(data, bars, monkeypatch, terminal):
    monkeypatch.setattr(sys, "stderr", types.SimpleNamespace(isatty=lambda: terminal))
    trained(*data)
    assert len(bars) == terminal
    trained(*data, progress=False)
    assert len(bars) == terminal


def test_without_tqdm(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match="pip install tqdm"):
        trained(*data, progress=True)
    monkeypatch.setattr(sys, "stderr", types.SimpleNamespace(isatty=lambda: True))
    assert trained(*data)[1].epoch == [0]


# ------------------------------------------------------------------------------------------------------------ bad input

def lonely(output, target):
    return output.sum()


def test_bad_input_is_said_before_any_training(data):
    X, y = data
    model = network()
    model.register_forward_hook(lambda *_: pytest.fail("it has begun to train"))
    adam = optim.Adam(model.parameters())
    good = {"model": model, "loss": F.cross_entropy, "optimizer": adam, "X": X, "y": y}
    for bad, error, sentence in [
        ({"y": y[:-1]}, ValueError, "X has 23 rows and y has 22"),
        ({"sample_weight": y[:4]}, ValueError, "X has 23 rows and sample_weight has 4"),
        ({"validation_data": (X, y[:3])}, ValueError, "X to validate has 23 rows and y to validate has 3"),
        ({"validation_data": X}, ValueError, "must be .X, y. or"),
        ({"validation_data": (X[:0], y[:0])}, ValueError, "X to validate has no rows"),
        ({"X": X[:0], "y": y[:0]}, ValueError, "X has no rows"),
        ({"X": 3.0}, ValueError, "X must have an axis of samples"),
        ({"X": [["a"]] * ROWS}, (TypeError, ValueError), "X of <U1 cannot become a tensor"),
        ({"X": np.array([["a"]] * ROWS)}, (TypeError, ValueError), "X must hold real numbers, not <U1"),
        ({"X": [[1], [2, 3]]}, ValueError, "X is ragged"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be a whole number, not 2.5"),
        ({"batch_size": True}, TypeError, "batch_size must be a whole number, not True"),
        ({"epochs": -1}, ValueError, "epochs must be at least 0, got -1"),
        ({"sample_weight": np.full(ROWS, -1.0)}, ValueError, "finite and not negative"),
        ({"sample_weight": np.full(ROWS, np.nan)}, ValueError, "finite and not negative"),
        ({"sample_weight": np.ones((ROWS, 1))}, ValueError, "one number for each sample"),
        ({"sample_weight": np.ones(ROWS), "loss": lonely}, ValueError, "sample_weight needs the loss of each sample"),
        ({"validation_data": (X, y, np.ones(ROWS)), "loss": lonely}, ValueError, "sample_weight needs"),
        ({"metrics": "accuracies"}, ValueError, "'accuracies' is not a metric; choose from accuracy"),
        ({"metrics": ["accuracy", "accuracy"]}, ValueError, "two values would be named 'accuracy'"),
        ({"metrics": ["confusion_matrix"]}, ValueError, "needs more than"),
        ({"metrics": [3]}, TypeError, "a metric is a name or a function"),
        ({"normalize": 3}, ValueError, r"normalize must be \(mean, std\)"),
        ({"normalize": (0, 0)}, ValueError, "normalize must be a finite mean and a finite, positive std"),
        ({"normalize": ([1, 2], 1)}, ValueError, r"mean has shape \[2\], which does not broadcast to a row of X, \[5\]"),
        ({"scheduler": adam}, TypeError, "scheduler must be of type LRScheduler, not Adam"),
        ({"clip_grad_norm": 0}, ValueError, "clip_grad_norm must be positive, got 0"),
        ({"model": lonely}, TypeError, "model must be of type Module, not function"),
        ({"optimizer": model}, TypeError, "optimizer must be of type Optimizer, not Sequential"),
        ({"loss": "mse"}, TypeError, "loss must be a module or function"),
        ({"callbacks": [print]}, TypeError, "a callback must be of type Callback, not builtin_function_or_method"),
        ({"callbacks": [EarlyStopping()]}, ValueError, "watches 'val_loss', which this training does not have; choose from loss"),
    ]:
        with pytest.raises(error, match=sentence):
            fit(**good | bad)
    assert same(model, network())


@pytest.mark.parametrize("options", [{"mode": "least"}, {"patience": -1}])
def test_early_stopping_refuses(options):
    with pytest.raises(ValueError, match="EarlyStopping takes"):
        EarlyStopping(**options)


def test_nan_is_trained_on(data):
    X, y = data
    X[3] = np.nan
    assert math.isnan(trained(X, y)[1].history["loss"][0])
