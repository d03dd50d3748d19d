# SPDX-License-Identifier: BSD-3-Clause
"""The rows: what is timed, and how each contender says it."""
import zlib
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np

import pyneuro as pn
from pyneuro.autograd import grad
from pyneuro.nn import functional as F
from pyneuro.ops import OPS

from .timing import DEFINITION, OURS, STEPS, Call, Expression, Row, load


def _random(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def _as_it_is(f: Callable) -> Callable:
    return f


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
                "torch": torch, "jax": jax, "onnxruntime": lambda: _onnx(x, [w, b], "Relu")}

    return Row("dense layer, x w^T + b and relu, float32", f"{m}x{n}x{k}", make, 2 * m * k * n, **more)


def _onnx(x: np.ndarray, parameters: list, last: str = "") -> Call:
    """Dense layers with relu between them, and after them maybe another op."""
    runtime, onnx = load("onnxruntime"), import_module("onnx")
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes, given, count, at = [], [], len(parameters) // 2, "x"
    for i, op in enumerate(["Relu"] * (count - 1) + [last]):
        names = [f"w{i}", f"b{i}"]
        given += [onnx.numpy_helper.from_array(p, name) for p, name in zip(parameters[2 * i:], names)]
        nodes.append(make.make_node("Gemm", [at, *names], [at := f"z{i}"], transB=1))
        if op:
            nodes.append(make.make_node(op, [at], [at := f"y{i}"]))
    graph = make.make_graph(nodes, "dense", [make.make_tensor_value_info("x", kind, x.shape)],
                            [make.make_tensor_value_info(at, kind, (len(x), len(parameters[-1])))], given)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {"x": x})


def activation(name: str, size: int, gradient: bool, **more: Any) -> Row:
    op = OPS[name]

    def make() -> dict:
        (x, *_), attrs = op.inputs(_random(name), size)
        needed = {param: value for (param, usual), value in zip(op.params, attrs) if usual is None}
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
            return call(t, partial(f, **needed) if needed else f, t.autograd.grad)

        ours = partial(getattr(F, name), **needed) if needed else getattr(F, name)
        return {OURS: lambda: call(pn, ours, grad), **({"torch": torch} if name != "identity" else {})}

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


STEP = "training step, dense, relu, ..., dense, cross-entropy, Adam, float32"


def training_step(sizes: tuple[int, ...], batch: int, plan: bool = False, calls: int = 10, **more: Any) -> Row:
    """plan: compiled, beside compiled peers, torch's eager step with its fused Adam, and NumPy by hand."""
    def make() -> dict:
        x, labels, parameters = _network(sizes, batch)
        given = parameters, x, labels
        eager = {OURS: lambda: _torch_step(pn, *given), "torch": lambda: _torch_step(load("torch"), *given, fused=True),
                 "jax": lambda: _jax_step(*given)}
        if not plan:
            return {**eager, "sklearn": lambda: _sklearn_step(*given)}

        def compiled_torch() -> Call:
            return _torch_step(load("torch"), *given, compile_loss=partial(load("torch").compile, dynamic=False), fused=True)

        return {**eager, OURS: lambda: _torch_step(pn, *given, compile_step=pn.compile), DEFINITION: eager[OURS],
                "torch.compile": compiled_torch, "numpy": lambda: _numpy_step(*given)}

    return Row(f"compiled {STEP}" if plan else STEP, named(sizes, batch), make, *_training_work(sizes, batch), rtol=1e-3,
               calls=calls, **more)


def named(sizes: tuple[int, ...], batch: int) -> str:
    return f"{'-'.join(map(str, sizes))}, batch {batch}"


def _training_work(sizes: tuple[int, ...], batch: int) -> tuple[float, float, float]:
    """Operations of the products, of which the input's gradient is none; bytes that have to move, and that are held: Adam's
    p, m and v, read and written, and the batch."""
    products = [2 * batch * n * m for n, m in pairwise(sizes)]
    state, given = 12 * sum((n + 1) * m for n, m in pairwise(sizes)), batch * (4 * sizes[0] + 8)
    return 3 * sum(products) - products[0], 2 * state + given, state + given


def _network(sizes: tuple[int, ...], batch: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """A batch, its labels, and weights and bias of each layer."""
    rng = _random("step")
    parameters = [rng.uniform(-n ** -0.5, n ** -0.5, shape).astype("float32")
                  for n, m in pairwise(sizes) for shape in ((m, n), (m,))]
    return rng.standard_normal((batch, sizes[0]), "float32"), rng.integers(0, sizes[-1], batch), parameters


def _model(torch: Any, parameters: list) -> Any:
    """Linear layers with relu between them, in torch's words, which are pyneuro's too."""
    nn, layers = torch.nn, []
    for w in parameters[::2]:
        layers += [nn.ReLU(), nn.Linear(w.shape[1], len(w))]
    model = nn.Sequential(*layers[1:])
    with torch.no_grad():
        for p, values in zip(model.parameters(), parameters):
            p.copy_(torch.from_numpy(values))
    return model


def _torch_step(torch: Any, parameters: list, x: np.ndarray, labels: np.ndarray, compile_step: Callable = _as_it_is,
                compile_loss: Callable = _as_it_is, **adam: bool) -> Call:
    model, loss_of = _model(torch, parameters), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, **adam)
    loss_of_batch = compile_loss(lambda x, labels: loss_of(model(x), labels))

    def step(x: Any, labels: Any) -> Any:
        optimizer.zero_grad()
        loss = loss_of_batch(x, labels)
        loss.backward()
        optimizer.step()
        return loss
    return Expression("step(x, labels)", step=compile_step(step), x=torch.from_numpy(x), labels=torch.from_numpy(labels))


def _numpy_step(parameters: list, x: np.ndarray, labels: np.ndarray) -> Call:
    """As one writes it in NumPy."""
    parameters = [p.copy() for p in parameters]
    first, second = ([np.zeros_like(p) for p in parameters] for _ in range(2))
    layers, rows, taken = list(zip(parameters[::2], parameters[1::2])), np.arange(len(x)), 0

    def step() -> Any:
        nonlocal taken
        inputs = [x]
        for w, b in layers[:-1]:
            inputs.append(np.maximum(inputs[-1] @ w.T + b, 0))
        w, b = layers[-1]
        y = inputs[-1] @ w.T + b
        e = np.exp(y - y.max(axis=1, keepdims=True))
        dy = e / e.sum(axis=1, keepdims=True)
        loss = -np.log(dy[rows, labels]).mean()
        dy[rows, labels] -= 1
        dy /= len(x)
        gradients: list[np.ndarray] = []
        for i in reversed(range(len(layers))):
            gradients = [dy.T @ inputs[i], dy.sum(axis=0), *gradients]
            if i:
                dy = dy @ layers[i][0] * (inputs[i] > 0)
        taken += 1
        rate, root = 1e-3 / (1 - 0.9 ** taken), (1 - 0.999 ** taken) ** 0.5
        for p, g, m, v in zip(parameters, gradients, first, second):
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            p -= rate * m / (np.sqrt(v) / root + 1e-8)
        return loss
    return step


def _jax_step(parameters: list, x: np.ndarray, labels: np.ndarray) -> Call:
    jax = load("jax")
    numpy, tree = jax.numpy, jax.tree

    def loss_of(p: list) -> Any:
        y = x_
        for w, b in zip(p[:-2:2], p[1:-2:2]):
            y = jax.nn.relu(y @ w.T + b)
        y = jax.nn.log_softmax(y @ p[-2].T + p[-1])
        return -numpy.mean(y[numpy.arange(len(x)), labels_])

    def update(p: list, m: list, v: list, t: Any) -> tuple:
        loss, g = jax.value_and_grad(loss_of)(p)
        m = tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        rate, root = 1e-3 / (1 - 0.9 ** t), numpy.sqrt(1 - 0.999 ** t)
        p = tree.map(lambda p, m, v: p - rate * m / (numpy.sqrt(v) / root + 1e-8), p, m, v)
        return loss, (p, m, v, t + 1)

    x_, labels_, p = numpy.asarray(x), numpy.asarray(labels), [numpy.array(a) for a in parameters]
    state = p, tree.map(numpy.zeros_like, p), tree.map(numpy.zeros_like, p), numpy.float32(1)
    compiled = jax.jit(update, donate_argnums=(0, 1, 2))

    def step() -> Any:
        nonlocal state
        loss, state = compiled(*state)
        return loss.block_until_ready()
    return step


def _sklearn_step(parameters: list, x: np.ndarray, labels: np.ndarray) -> Call:
    network = import_module("sklearn.neural_network").MLPClassifier(
        tuple(map(len, parameters[1:-2:2])), alpha=0, learning_rate_init=1e-3, batch_size=len(x), shuffle=False)
    network.partial_fit(x, labels, classes=np.arange(len(parameters[-1])))          # makes the arrays that are now overwritten
    for own, values in zip((*network.coefs_, *network.intercepts_), (*parameters[::2], *parameters[1::2])):
        own[:] = values.T
    optimizer = network._optimizer
    optimizer.t = 0
    for moments in (*optimizer.ms, *optimizer.vs):
        moments[:] = 0

    def step() -> float:
        return network.partial_fit(x, labels).loss_
    return step


def inference(sizes: tuple[int, ...], batch: int, **more: Any) -> Row:
    def make() -> dict:
        x, _, parameters = _network(sizes, batch)

        def call(library: Any, compiled: Callable, mode: Callable) -> Call:
            return Expression("model(x)", model=mode()(compiled(_model(library, parameters).eval())), x=library.from_numpy(x))

        def numpy() -> Call:
            def model(x: np.ndarray) -> np.ndarray:
                for w, b in zip(parameters[:-2:2], parameters[1:-2:2]):
                    x = np.maximum(x @ w.T + b, 0)
                return x @ parameters[-2].T + parameters[-1]
            return Expression("model(x)", model=model, x=x)

        return {OURS: lambda: call(pn, partial(pn.compile, prepack=True), pn.no_grad),
                DEFINITION: lambda: call(pn, _as_it_is, pn.no_grad),
                "torch": lambda: call(load("torch"), _as_it_is, load("torch").inference_mode), "numpy": numpy,
                "onnxruntime": lambda: _onnx(x, parameters)}

    weights = 4 * sum((n + 1) * m for n, m in pairwise(sizes))
    return Row("inference, dense, relu, ..., dense, float32", named(sizes, batch), make,
               2 * batch * sum(n * m for n, m in pairwise(sizes)), weights, **more)


@cache
def _images(count: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    rng = _random("images")
    return rng.standard_normal((count, features), "float32"), rng.integers(0, 10, count)


def epoch(count: int, sizes: tuple[int, ...], batch: int, **more: Any) -> Row:
    """fit beside the sum of its steps: the same, with every batch ready."""
    def make() -> dict:
        def fitted(step_only: bool = False) -> Call:
            (x, labels), (_, _, parameters) = _images(count, sizes[0]), _network(sizes, batch)
            model, loss_of = _model(pn, parameters), F.cross_entropy
            optimizer = pn.optim.Adam(model.parameters())
            if not step_only:
                run = partial(pn.fit, model, loss_of, optimizer, x, labels, batch_size=batch, seed=0, progress=False)
                return lambda: run().history["loss"]

            @pn.compile
            def step(x: pn.Tensor, labels: pn.Tensor) -> pn.Tensor:
                optimizer.zero_grad()
                loss = loss_of(model(x), labels)
                loss.backward()
                optimizer.step()
                return loss

            order = pn.randperm(count, generator=pn.Generator().manual_seed(0)).split(batch)
            batches = [(pn.from_numpy(x[i]), pn.from_numpy(labels[i])) for i in map(np.asarray, order)]
            return lambda: sum(step(*given).item() * len(given[1]) for given in batches) / count

        return {OURS: fitted, STEPS: partial(fitted, True)}

    flops, nbytes, held = _training_work(sizes, batch)
    steps = count / batch
    return Row(f"compiled {STEP}", f"epoch of {count:,}, {named(sizes, batch)}", make, flops * steps, nbytes * steps, held, **more)


SMALL, MIDDLE, LARGE = (f"float32 product, {sizes} cubed" for sizes in ("16 to 64", "128 to 512", "1024 and 2048"))
DOUBLE, SKINNY = "float64 product, 256 to 1024 cubed", "float32 product, skinny"

PLANS = [                              # sizes, batch; how much faster than the best of torch and jax, and than NumPy by hand
    ((4, 16, 3), 16, 12, 12),
    ((8, 64, 64, 4), 32, 6, 8),
    ((64, 128, 10), 32, 4, 5),
    ((784, 256, 128, 10), 64, 1.8, 2.5),
    ((1024, 2048, 2048, 10), 256, 1.0, 1.5),
]

LARGEST = named(*PLANS[-1][:2])

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
    *(training_step(sizes, batch, plan=True, calls=3 if name == LARGEST else 10, gate=name, quick=name != LARGEST)
      for sizes, batch, *_ in PLANS for name in [named(sizes, batch)]),
    epoch(60_000, (784, 128, 10), 128, gate="epoch", quick=False),
    inference((784, 128, 64, 10), 1, gate="inference"),
]
