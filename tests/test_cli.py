# SPDX-License-Identifier: BSD-3-Clause
"""The command line: the main job, what it refuses, and how it ends."""
import functools
import json
import signal
import subprocess
import sys

import pytest
from cases import NATIVES

import pyneuro as pn
from pyneuro.cli import main

COMMAND = [sys.executable, "-m", "pyneuro"]


@functools.cache
def demo(*options):
    """What a demo says, in a process of its own: it sees to it that NumPy runs on one thread."""
    return json.loads(subprocess.run([*COMMAND, "demo", "--json", *options], check=True, stdout=subprocess.PIPE).stdout)


def small(capsys, *options):
    """What a demo says here: too small for NumPy to use threads."""
    assert main(["demo", "--json", "--hidden", "32", "--activation", "relu", *options]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_demo_learns_digits():
    told = demo()
    assert told["numpy_threads"] == 1
    assert told["test_accuracy"] >= 0.97
    assert sum(map(sum, told["confusion_matrix"])) == 360
    assert told["speedup"] == told["reference_seconds"] / told["seconds"]
    assert told["steps_per_second"] == told["steps"] / told["seconds"]
    assert [e["epoch"] for e in told["epochs"]] == list(range(1, 31))


@pytest.mark.slow
@pytest.mark.parametrize("backend", NATIVES)
def test_backends_agree_in_every_loss(backend):
    native, reference = (demo("--backend", name, "--epochs", "4", "--seed", "3") for name in (backend, "reference"))
    losses = [[e["loss"] for e in told["epochs"]] for told in (native, reference)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert native["loss_difference"] < 1e-4 and reference["speedup"] == 1


def test_seed_decides(capsys):
    runs = [small(capsys, "--epochs", "1", "--seed", seed) for seed in ("1", "1", "2")]
    losses = [run["epochs"][0]["loss"] for run in runs]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("optimizer", pn.optim.OPTIMIZERS)
def test_every_optimizer_learns(capsys, optimizer):
    told = small(capsys, "--optimizer", optimizer, "--epochs", "4", "--backend", "reference")
    assert told["test_accuracy"] > 0.8


def test_text_for_people(capsys):
    assert main(["demo", "--epochs", "2", "--hidden", "8,8", "--lr", "0.1", "--batch-size", "64"]) == 0
    text = capsys.readouterr().out
    for part in ("network 64-8-8-10", "Test accuracy", "true   0", "Worst confusion", "steps/s", "thread"):
        assert part in text


@pytest.mark.parametrize("options, sentence", [
    (["--activation", "rleu"], "'rleu' is not an activation; choose from identity,"),
    (["--optimizer", "adm"], "'adm' is not an optimizer; choose from sgd,"),
    (["--backend", "gpu"], "'gpu' is not a backend of this machine; choose from reference"),
    (["--epochs", "0"], "'0' is not a whole number of at least 1"),
    (["--lr", "nan"], "'nan' is not a positive number"),
    (["--hidden", "12,,3"], "'12,,3' is no list of widths"),
    (["--frobnicate"], "unrecognized arguments: --frobnicate"),
])
def test_bad_usage(capsys, options, sentence):
    assert main(["demo", *options]) == 2
    out, err = capsys.readouterr()
    assert sentence in err and err.count("\n") == 1 and not out


def test_divergence_is_said(capsys):
    assert main(["demo", "--lr", "1e38", "--epochs", "2", "--hidden", "8", "--json"]) == 1
    out, err = capsys.readouterr()
    assert "try a smaller --lr than 1e+38" in err and not out


def test_info_and_version(capsys):
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == pn.__version__
    assert main(["info"]) == 0
    assert pn.__version__ in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pyneuro {pn.__version__}\n"
    assert main([]) == 2


def running():
    """A demo that does not end by itself, after its first line."""
    process = subprocess.Popen([*COMMAND, "demo", "--epochs", "1000000", "--hidden", "8"], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert "learns to read digits" in process.stdout.readline()
    return process


def test_interrupted():
    process = running()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "pyneuro: interrupted" in err and "Traceback" not in err


def test_nobody_reads():
    process = running()
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert "Traceback" not in process.stderr.read() and not process.stderr.close()
