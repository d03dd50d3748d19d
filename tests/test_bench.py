# SPDX-License-Identifier: BSD-3-Clause
"""The shipped benchmarks: what they measure, what they refuse, what they tell; on a single small row."""
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys

import numpy as np
import pytest
from cases import NATIVES

import pyneuro as pn
from pyneuro.bench import results, rows, run, timing
from pyneuro.cli import main

COMMAND = [sys.executable, "-m", "pyneuro", "bench"]
TINY = timing.Effort("tiny", 3, 0, 1e-5)
SMALL = "16 to 64 cubed: 16 cubed"
ANYWHERE = {} if NATIVES else {"PYNEURO_BACKEND": "reference"}      # or it would warn


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """NumPy is the only peer, a row takes no time, and neither do the peaks."""
    monkeypatch.setattr(timing, "find_spec", lambda peer: peer == "numpy")
    monkeypatch.setattr(timing, "best", lambda f, **more: 1e-3)
    monkeypatch.setattr("pyneuro.bench.QUICK", TINY)
    timing._copy_bandwidth.cache_clear()
    timing.flop_rate.cache_clear()
    yield
    timing._copy_bandwidth.cache_clear()
    timing.flop_rate.cache_clear()


def bench(*options):
    return main(["bench", "--quick", *options])


def row_of(text):
    row, = (r for r in rows.ROWS if text in str(r))
    return row


def test_json_has_everything(capsys):
    assert bench("--rows", SMALL, "--json") == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["complete"] and told["effort"] == "tiny" and "16 cubed" in err and "gates" in err
    assert {"cpu", "isas", "cores", "numpy", "version", "blas", "load", "threads", "processor", "peaks"} <= {*told["environment"]}
    assert list(told["environment"]["peers"]) == ["numpy"]
    assert "left out: torch, jax, onnxruntime, sklearn" in err
    row, = told["rows"]
    assert row["flops"] == 2 * 16 ** 3 and row["rate"] > 0 and row["share_of_peak"] > 0
    assert set(row["seconds"]) == {"pyneuro", "numpy", *(["reference"] if pn.current_backend().name != "reference" else [])}
    for times in row["seconds"].values():
        assert times["quartiles"][0] <= times["median"] <= times["quartiles"][2] and times["rounds"] == 3
    gate = told["gates"][0]
    assert (gate["rows"], gate["of_rows"], gate["at_least"]) == (1, 5, 1.5)
    assert gate["measured"] == pytest.approx(row["seconds"]["numpy"]["ratio"])
    assert all(g["met"] is None and g["measured"] is None for g in told["gates"][1:])


def test_files(tmp_path, capsys):
    paths = tmp_path / "RESULTS.md", tmp_path / "all.json"
    assert bench("--rows", SMALL, "--results", str(paths[0]), "--json", str(paths[1])) == 0
    text = paths[0].read_text()
    for part in (pn.config()["cpu"], "numpy", "| 16 cubed |", "## Gates", "| not measured |", "20", "GFLOP/s"):
        assert part in text
    assert json.loads(paths[1].read_text())["rows"][0]["name"] == "16 cubed"
    assert "16 cubed" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "code", "sentence"), [
    (["--rows", "no such"], 2, "no row is named like 'no such'; groups are float32 product"),
    (["--results", "/nowhere/R.md"], 1, "/nowhere/R.md cannot be written"),
    (["--json", "."], 1, ". cannot be written"),
    (["--frobnicate"], 2, "unrecognized arguments: --frobnicate"),
])
def test_refused_before_anything_is_timed(capsys, options, code, sentence):
    assert bench(*options) == code
    out, err = capsys.readouterr()
    assert sentence in err and err.count("\n") == 1 and not out


def test_a_wrong_result_of_ours_ends_the_run(monkeypatch, capsys):
    row = row_of(SMALL)
    wrong = timing.Row(row.group, row.name, lambda: {timing.OURS: lambda: lambda: np.float32(
        pn.current_backend().name == "reference")}, rtol=1e-5)
    monkeypatch.setattr(run, "ROWS", [row_of("32 cubed"), wrong])
    with pn.backend("native" if NATIVES else pn.kernels.Checked(pn.kernels.Reference(), pn.kernels.Reference())):
        assert bench("--json") == 1
    out, err = capsys.readouterr()
    assert "pyneuro on" in err and "differs from the reference by" in err
    assert [r["name"] for r in json.loads(out)["rows"]] == ["32 cubed"] and not json.loads(out)["complete"]


@pytest.mark.parametrize("broken", [lambda: lambda: 0, lambda: lambda: np.ones((16, 16)), lambda: 1 / 0])
def test_a_peer_that_is_wrong_or_fails_is_left_out(broken):
    row = row_of(SMALL)
    found, why = timing.contenders(timing.Row(row.group, row.name, lambda: {**row.make(), "numpy": broken}), ["numpy"])
    assert "numpy" not in found and "pyneuro" in found and why["numpy"]


def test_rounds_are_interleaved_and_rotated():
    order = []
    given = {name: timing.Contender(lambda name=name: order.append(name)) for name in "abc"}
    ticks = iter(range(10 ** 6))
    times = timing.measure(given, timing.Effort("", 3, 0, 1), lambda: next(ticks))
    assert {name: len(t) for name, t in times.items()} == dict.fromkeys("abc", 3)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"


def fake(row, ours, **peers):
    return results.Result(row, {"pyneuro": [ours] * 3, **{name: [t] * 3 for name, t in peers.items()}})


def test_gates_judge(monkeypatch):
    activations = [r for r in rows.ROWS if r.gate == "activation"][:3]
    measured = [fake(activations[0], 1.0, torch=2.0), fake(activations[1], 1.0, torch=3.0), fake(activations[2], 1.0, torch=0.5)]
    gate, = (g for g in results.GATES if g.rows == "activation" and g.against == ("torch",))
    judged = gate.judge(measured, True)
    assert (judged["measured"], judged["met"], judged["rows"], judged["lowest"]) == (2, False, 3, 0.5)
    assert str(activations[2]) in judged["short"][0]
    assert gate.judge(measured[:2], True)["met"] and gate.judge(measured, False)["met"] is None
    spared = results.Gate("", "activation", ("torch",), 1, statistics.median, 0.8, 0.9)
    monkeypatch.setattr(results, "copy_bandwidth", lambda nbytes: 1.0)
    assert spared.judge(measured, True)["met"]                  # far above 0.9 of that bandwidth
    best = results.Gate("", "activation", ("numpy", "torch"), 1)
    assert best.judge([fake(activations[0], 1.0, torch=2.0, numpy=1.5)], True)["measured"] == 1.5


def test_the_floor_is_products_and_a_copy(monkeypatch):
    monkeypatch.setattr(results, "flop_rate", lambda dtype: 100.0)
    monkeypatch.setattr(results, "copy_bandwidth", {7: 10.0, 3: 20.0}.get)
    for flops, nbytes, held, floor in ((200, 0, 0, 2), (0, 7, 0, 0.7), (200, 60, 3, 5)):
        result = fake(timing.Row("", "", dict, flops, nbytes, held), 10.0)
        assert (result.floor, result.share) == pytest.approx((floor, floor / 10))
    assert fake(timing.Row("", "", dict), 1.0).share is None


def test_a_row_of_long_rounds_has_fewer():
    ticks = iter(range(10 ** 6))
    given = {"a": timing.Contender(lambda: None)}
    for seconds, rounds in ((2, 15), (0.05, 5)):                   # a round takes one
        effort = timing.Effort("", 15, seconds, 1)
        assert len(timing.measure(given, effort, lambda: next(ticks))["a"]) == rounds


def test_torch_s_compiler_is_for_long_runs(monkeypatch):
    monkeypatch.setattr(timing, "find_spec", lambda peer: "." not in peer)
    for compiler, known in (("/usr/bin/g++", True), (None, False)):
        monkeypatch.setattr(timing, "which", {"g++": compiler}.get)
        assert [("torch.compile" in run.Run([], effort, print).peers) for effort in (timing.QUICK, timing.FULL)] == [False, known]


def test_every_gate_has_rows_and_every_row_a_name_of_its_own():
    gates = {g.rows for g in results.GATES}
    assert {r.gate for r in rows.ROWS} == gates | {""}
    assert len({str(r) for r in rows.ROWS}) == len(rows.ROWS)
    for gate in gates:
        assert any(r.quick for r in rows.ROWS if r.gate == gate) or gate in (rows.LARGE, rows.LARGEST, "epoch")


@pytest.mark.parametrize("group", dict.fromkeys(r.group for r in rows.ROWS))
def test_a_row_of_every_group_agrees_with_the_reference(group):
    row = min((r for r in rows.ROWS if r.group == group), key=lambda r: max(r.flops, r.nbytes))
    found, left_out = timing.contenders(row, timing.installed())
    assert "pyneuro" in found and not left_out


def test_threads(monkeypatch, capsys):
    chosen = []
    monkeypatch.setattr(pn, "set_num_threads", chosen.append, raising=False)
    monkeypatch.setattr(pn, "get_num_threads", lambda: 1, raising=False)
    monkeypatch.setattr(run, "ROWS", [dataclasses.replace(row_of("10,000 parameters"), threads=True)])
    assert bench("--threads", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    if told["environment"]["cores"] > 1:
        assert {1, 2} <= {*chosen} and chosen[-1] == 1 and set(told["threads"][0]["speedup"]) >= {"1", "2"}


def test_the_processor_is_given_back():
    if hasattr(os, "sched_getaffinity"):
        before = os.sched_getaffinity(0)
        with run.alone() as processor:
            assert os.sched_getaffinity(0) == {processor}
        assert os.sched_getaffinity(0) == before


def test_durations():
    assert [results.duration(s) for s in (3e-7, 1.31e-6, 1.5e-5, 1.2e-3, 2)] == ["300 ns", "1310 ns", "15.0 us", "1.20 ms", "2000 ms"]


@pytest.mark.slow
def test_interrupted_it_tells_what_it_has():
    process = subprocess.Popen([*COMMAND, "--rows", "float32 product, 16", "--json"], text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env={**os.environ, **ANYWHERE})
    assert any("16 cubed" in line for line in iter(process.stderr.readline, ""))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "pyneuro: interrupted" in err and "Traceback" not in err
    told = json.loads(out)
    assert told["rows"][0]["name"] == "16 cubed" and not told["complete"] and "gates" in err


def test_no_import_of_pyneuro_brings_it():
    code = "import sys, pyneuro, pyneuro.cli; print(*[m for m in sys.modules if 'bench' in m or m in ('torch', 'jax')])"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, env={**os.environ, **ANYWHERE}, check=True)
    assert done.stdout == "\n"
