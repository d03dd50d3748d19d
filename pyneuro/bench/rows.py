# SPDX-License-Identifier: BSD-3-Clause
"""The rows: what is timed, and how each contender says it."""
import zlib
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

import pyneuro as pn
from pyneuro.autograd import grad
from pyneuro.nn import functional as F
from pyneuro.ops import OPS

from .timing import OURS, Call, Expression, Row, load


def _random(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def product(group: str, m: int, k: int, n: int, dtype: Any = "float32", **more: Any) -> Row:
    def make() -> dict:
        rng = _random(f"{m} {k} {n}")
        a, b = rng.standard_normal((m, k), dtype), rng.standard_normal((k, n), dtype)

        def torch() -> Call:
            t = load("torch")
            return Expression("mm(a, b)", a=t.from_numpy(a), b=t.from_numpy(b), mm=t.mm)

        return {OURS: lambda: Expression("a @ b", a=pn.from_numpy(a), b=pn.from_numpy(b)),
                "numpy": lambda: Expression("a @ b", a=a, b=b), "torch": torch,
                **({"jax": lambda: _jitted(lambda a, b: a @ b, a, b)} if dtype == "float32" else {})}

    return Row(group, f"{m} cubed" if m == k == n else f"{m}x{k} by {k}x{n}", make, 2 * m * k * n, dtype=dtype,
               rtol=1e-5 if dtype == "float32" else 1e-12, **more)


def _jitted(f: Callable, *arrays: np.ndarray) -> Call:
    """A function of arrays, compiled by jax and applied to these."""
    jax = load("jax")
    compiled, given = jax.jit(f), [jax.numpy.asarray(a) for a in arrays]
    return lambda: compiled(*given).block_until_ready()


def dense(m: int, k: int, n: int, **more: Any) -> Row:
    def make() -> dict:
        rng = _random(f"{m} {k} {n}")
        x, w, b = (rng.standard_normal(shape, "float32") for shape in ((m, k), (n, k), (n,)))

        def torch() -> Call:
            t = load("torch")
            given = [t.from_numpy(a) for a in (x, w, b)]
            return lambda: t.relu(t.nn.functional.linear(*given))

        def jax() -> Call:
            return _jitted(lambda x, w, b: load("jax").nn.relu(x @ w.T + b), x, w, b)

        x_, w_, b_ = (pn.from_numpy(a) for a in (x, w, b))
        return {OURS: lambda: partial(F.dense, x_, w_, b_, "relu"), "numpy": lambda: lambda: np.maximum(x @ w.T + b, 0),
                "torch": torch, "jax": jax, "onnxruntime": lambda: _onnx_dense(x, w, b)}

    return Row("dense layer, x w^T + b and relu, float32", f"{m}x{n}x{k}", make, 2 * m * k * n, **more)


def _onnx_dense(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> Call:
    runtime, onnx = load("onnxruntime"), import_module("onnx")
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [make.make_node("Gemm", ["x", "w", "b"], ["z"], transB=1), make.make_node("Relu", ["z"], ["y"])]
    graph = make.make_graph(nodes, "dense", [make.make_tensor_value_info("x", kind, x.shape)],
                            [make.make_tensor_value_info("y", kind, (len(x), len(w)))],
                            [onnx.numpy_helper.from_array(w, "w"), onnx.numpy_helper.from_array(b, "b")])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {"x": x})


def activation(name: str, size: int, gradient: bool, **more: Any) -> Row:
    op = OPS[name]

    def make() -> dict:
        (x, *_), _ = op.inputs(_random(name), size)
        x, dy = (np.asarray(a, "float32") for a in (x, _random("dy").uniform(0.5, 1.5, size)))

        def call(library: Any, f: Callable, grad: Callable) -> Call:
            x_, dy_ = library.from_numpy(x), library.from_numpy(dy)
            if not gradient:
                return partial(f, x_)
            x_.requires_grad_()

            def both() -> Any:
                y = f(x_)
                return y, grad(y, (x_,), dy_)
            return both

        def torch() -> Call:
            t = load("torch")
            f = partial(t.nn.functional.gelu, approximate="tanh") if name == "gelu_tanh" else getattr(t.nn.functional, name)
            return call(t, f, t.autograd.grad)

        return {OURS: lambda: call(pn, getattr(F, name), grad), **({"torch": torch} if name != "identity" else {})}

    # Forward x and y; then what it saved, one of these, and dy and dx.
    return Row(f"activations, {size:,} elements, {'forward and gradient' if gradient else 'forward'}, float32", name, make,
               nbytes=(5 if gradient else 2) * 4 * size, held=(4 if gradient else 2) * 4 * size, gate="activation", **more)


def cross_entropy(rows: int, classes: int) -> Row:
    def make() -> dict:
        rng = _random("cross-entropy")
        x, labels = rng.standard_normal((rows, classes), "float32"), rng.integers(0, classes, rows)

        def call(library: Any, loss_of: Callable, grad: Callable) -> Call:
            x_, labels_ = library.from_numpy(x).requires_grad_(), library.from_numpy(labels)

            def both() -> Any:
                loss = loss_of(x_, labels_)
                return loss, grad(loss, (x_,))
            return both

        def torch() -> Call:
            t = load("torch")
            return call(t, t.nn.functional.cross_entropy, t.autograd.grad)

        return {OURS: lambda: call(pn, F.cross_entropy, grad), "torch": torch}

    return Row("softmax cross-entropy, forward and gradient, float32", f"{rows}x{classes}", make, nbytes=3 * 4 * rows * classes,
               held=2 * 4 * rows * classes, gate="cross-entropy")


def adam(size: int, **more: Any) -> Row:
    def make() -> dict:
        p, g = (_random(name).standard_normal(size, "float32") for name in "pg")

        def call(library: Any, **options: bool) -> Call:
            weights = library.from_numpy(p.copy()).requires_grad_()
            weights.grad = library.from_numpy(g)
            optimizer = library.optim.Adam([weights], lr=1e-3, **options)

            def step() -> Any:
                optimizer.step()
                return weights
            return step

        return {OURS: lambda: call(pn), "torch": lambda: call(load("torch"), fused=True)}

    return Row("Adam, float32, torch's fused", f"{size:,} parameters", make, nbytes=7 * 4 * size, held=4 * 4 * size,
               gate="Adam", calls=5, **more)


def eager(name: str, by_numpy: str, gradient: bool, **more: Any) -> Row:
    """x, y and w are 8x8: what is timed is everything but the arithmetic."""
    def make() -> dict:
        x, y, w = (_random(letter).standard_normal((8, 8), "float32") for letter in "xyw")

        def call(library: Any) -> Call:
            x_, y_, w_ = (library.from_numpy(a).requires_grad_(gradient) for a in (x, y, w))
            return Expression(name, x=x_, y=y_, w=w_, relu=library.relu)

        return {OURS: lambda: call(pn), "torch": lambda: call(load("torch")),
                **({} if gradient else {"numpy": lambda: Expression(by_numpy, x=x, y=y, w=w, maximum=np.maximum)})}

    return Row(f"eager, 64 elements, {'recorded for gradients' if gradient else 'no gradient'}", name, make, **more)


def training_step(sizes: tuple[int, int, int], batch: int, **more: Any) -> Row:
    def make() -> dict:
        rng, (features, hidden, classes) = _random("step"), sizes
        shapes = (hidden, features), (hidden,), (classes, hidden), (classes,)
        parameters = [rng.uniform(-0.1, 0.1, shape).astype("float32") for shape in shapes]
        x, labels = rng.standard_normal((batch, features), "float32"), rng.integers(0, classes, batch)
        return {OURS: lambda: _torch_step(pn, parameters, x, labels),
                "torch": lambda: _torch_step(load("torch"), parameters, x, labels),
                "jax": lambda: _jax_step(parameters, x, labels), "sklearn": lambda: _sklearn_step(parameters, x, labels)}

    products = 2 * batch * (sizes[0] * sizes[1] + sizes[1] * sizes[2])
    return Row("training step, dense, relu, dense, cross-entropy, Adam, float32", f"{'-'.join(map(str, sizes))}, batch {batch}",
               make, 3 * products - 2 * batch * sizes[0] * sizes[1],             # no one asks for the input's gradient
               rtol=1e-3, calls=10, **more)


def _torch_step(torch: Any, parameters: list, x: np.ndarray, labels: np.ndarray) -> Call:
    """A step in torch's words, which are pyneuro's too."""
    nn, (w1, _, w2, _) = torch.nn, parameters
    model = nn.Sequential(nn.Linear(w1.shape[1], len(w1)), nn.ReLU(), nn.Linear(w2.shape[1], len(w2)))
    with torch.no_grad():
        for p, values in zip(model.parameters(), parameters):
            p.copy_(torch.from_numpy(values))
    loss_of, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=1e-3)
    x_, labels_ = torch.from_numpy(x), torch.from_numpy(labels)

    def step() -> Any:
        optimizer.zero_grad()
        loss = loss_of(model(x_), labels_)
        loss.backward()
        optimizer.step()
        return loss
    return step


def _jax_step(parameters: list, x: np.ndarray, labels: np.ndarray) -> Call:
    jax = load("jax")
    numpy, tree = jax.numpy, jax.tree

    def loss_of(p: list) -> Any:
        y = jax.nn.log_softmax(jax.nn.relu(x_ @ p[0].T + p[1]) @ p[2].T + p[3])
        return -numpy.mean(y[numpy.arange(len(x)), labels_])

    def update(p: list, m: list, v: list, t: Any) -> tuple:
        loss, g = jax.value_and_grad(loss_of)(p)
        m = tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        rate, root = 1e-3 / (1 - 0.9 ** t), numpy.sqrt(1 - 0.999 ** t)
        p = tree.map(lambda p, m, v: p - rate * m / (numpy.sqrt(v) / root + 1e-8), p, m, v)
        return loss, (p, m, v, t + 1)

    x_, labels_, p = numpy.asarray(x), numpy.asarray(labels), [numpy.asarray(a) for a in parameters]
    state, compiled = (p, tree.map(numpy.zeros_like, p), tree.map(numpy.zeros_like, p), numpy.float32(1)), jax.jit(update)

    def step() -> Any:
        nonlocal state
        loss, state = compiled(*state)
        return loss.block_until_ready()
    return step


def _sklearn_step(parameters: list, x: np.ndarray, labels: np.ndarray) -> Call:
    network = import_module("sklearn.neural_network").MLPClassifier(
        (len(parameters[0]),), alpha=0, learning_rate_init=1e-3, batch_size=len(x), shuffle=False)
    network.partial_fit(x, labels, classes=np.arange(len(parameters[3])))          # makes the arrays that are now overwritten
    for own, values in zip((*network.coefs_, *network.intercepts_), (*parameters[::2], *parameters[1::2])):
        own[:] = values.T
    optimizer = network._optimizer
    optimizer.t = 0
    for moments in (*optimizer.ms, *optimizer.vs):
        moments[:] = 0

    def step() -> float:
        return network.partial_fit(x, labels).loss_
    return step


SMALL, MIDDLE, LARGE = (f"float32 product, {sizes} cubed" for sizes in ("16 to 64", "128 to 512", "1024 and 2048"))
DOUBLE, SKINNY = "float64 product, 256 to 1024 cubed", "float32 product, skinny"

ROWS = [
    *(product(SMALL, n, n, n, gate=SMALL, quick=n in (16, 32, 64)) for n in (16, 24, 32, 48, 64)),
    *(product(MIDDLE, n, n, n, gate=MIDDLE, quick=n != 384, threads=n == 512) for n in (128, 256, 384, 512)),
    *(product(LARGE, n, n, n, gate=LARGE, quick=False, threads=n == 1024) for n in (1024, 2048)),
    *(product(DOUBLE, n, n, n, "float64", gate=DOUBLE, quick=n == 256) for n in (256, 512, 1024)),
    *(product(SKINNY, *shape, quick=shape in ((1, 512, 512), (32, 784, 128))) for shape in (
        (1, 512, 512), (512, 512, 1), (32, 64, 128), (32, 128, 10), (32, 784, 128), (128, 32, 64), (4096, 16, 16), (64, 4096, 64))),
    dense(32, 784, 128, gate="dense"), dense(1, 784, 128), dense(128, 1024, 1024, quick=False, threads=True),
    *(activation(op.name, size, gradient, quick=size == 4096 or op.name in ("relu", "tanh", "gelu"),
                 threads=size > 4096 and op.name in ("relu", "gelu"))
      for size in (4096, 1048576) for gradient in (False, True) for op in OPS.values() if op.kind == "activation"),
    cross_entropy(128, 10), cross_entropy(512, 1000),
    adam(10_000), adam(1_000_000, threads=True),
    *(eager(name, by_numpy, gradient, gate=gate if not gradient else "") for gradient in (False, True)
      for name, by_numpy, gate in (("x + y", "x + y", "eager"), ("relu(x)", "maximum(x, 0)", "eager"),
                                   ("x * 2.0", "x * 2.0", ""), ("x @ w", "x @ w", ""), ("x.sum()", "x.sum()", ""))),
    training_step((64, 128, 10), 32, gate="step"), training_step((784, 256, 10), 128, quick=False),
]
