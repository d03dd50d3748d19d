# SPDX-License-Identifier: BSD-3-Clause
"""The command line: `pyneuro demo` trains a network on handwritten digits and times it; `pyneuro bench`; `pyneuro info`.

Exit codes: 0 done, 1 failed, 2 bad usage, 130 interrupted, 141 nobody reads the output any more.
"""
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

import pyneuro as pn
from pyneuro import nn, optim
from pyneuro.datasets import load_digits
from pyneuro.kernels import Backend, Reference, current_backend, make_backend
from pyneuro.metrics import accuracy, confusion_matrix
from pyneuro.nn import functional as F
from pyneuro.training import Callback, fit

if TYPE_CHECKING:
    import argparse

CLASSES = 10
WIDEST = 10_000                # of --hidden: two such layers and their optimizer fit in 2 GB
LABEL_SMOOTHING = 0.1          # worth 1 % of accuracy here; and losses far from 0 can be compared

# What suits digits, when --lr does not say otherwise; an optimizer that is not here starts with its own defaults.
START = {"sgd": {"lr": 0.2, "momentum": 0.9}, "adam": {"lr": 0.005}, "adamw": {"lr": 0.005}, "rmsprop": {"lr": 0.003},
         "adagrad": {"lr": 0.05}, "adadelta": {"lr": 2.0}, "radam": {"lr": 0.02}, "asgd": {"lr": 0.5}, "lion": {"lr": 0.002},
         "lamb": {"lr": 0.03}}

# NumPy's BLAS reads these when it is imported, and never again. Two threads would be slower than one here, on small
# matrices and busy cores up to twenty times.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
                            "PYNEURO_NUM_THREADS"), "1")


def main(argv: list[str] | None = None) -> int:
    """Run one command (of sys.argv) and return the exit code; errors are a sentence on standard error."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:            # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))    # noqa: SIM115  as long as the process lives
    try:
        if argv is None:
            _begin_on_one_thread()
        code = _command(argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _failed("interrupted", 130)
    except BrokenPipeError:
        _drop_output()
        return 141
    except (FloatingPointError, MemoryError, OSError) as error:
        _drop_output()
        return _failed(str(error) or "out of memory", 1)


def _begin_on_one_thread() -> None:
    """If this process is there to time, begin anew with every library on one thread."""
    given = sys.argv[1:]
    times = given[:1] in (["demo"], ["bench"]) and sys.orig_argv[-len(given):] == given
    if times and not ONE_THREAD.items() <= os.environ.items():
        quiet = {} if pn.kernels.has_native else {"PYNEURO_BACKEND": "reference"}     # or it would warn again
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **ONE_THREAD, **quiet})


def _command(argv: list[str] | None) -> int:
    parser = _parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:                    # argparse has said why
        return int(stop.code or 0)
    if not args.command:
        parser.print_help(sys.stderr)
        return 2
    return {"demo": demo, "bench": bench, "info": info}[args.command](args)


def _failed(sentence: str, code: int) -> int:
    print(f"pyneuro: {sentence}", file=sys.stderr)
    return code


def _drop_output() -> None:
    """Let what is left in a stream that cannot be written to go nowhere, so that Python does not try again at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# Arguments

def _parser() -> "argparse.ArgumentParser":
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def number(kind: type, what: str, fits: Callable[[Any], bool]) -> Callable[[str], Any]:
        def parse(text: str) -> Any:
            try:
                if fits(value := kind(text)):
                    return value
            except ValueError:
                pass
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return parse

    def one_of(what: str, choices: list[str]) -> Callable[[str], str]:
        def parse(text: str) -> str:
            if text not in choices:
                raise argparse.ArgumentTypeError(f"{text!r} is not {what}; choose from {', '.join(choices)}")
            return text
        return parse

    def backend(text: str) -> Backend:
        try:
            return make_backend(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    def widths(text: str) -> tuple[int, ...]:
        parts = text.split(",")
        if not all(part.strip().isdecimal() and len(part) < 10 and 1 <= int(part) <= WIDEST for part in parts):
            raise argparse.ArgumentTypeError(f"{text!r} is no list of widths from 1 to {WIDEST} such as 128 or 256,128")
        return tuple(map(int, parts))

    count = number(int, "a whole number of at least 1", lambda n: n >= 1)
    rate = number(float, "a positive number", lambda x: 0 < x < math.inf)
    activations, optimizers = list(nn.activations.ACTIVATIONS), list(optim.OPTIMIZERS)

    parser = Parser(prog="pyneuro", description="Neural networks on the CPU.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"pyneuro {pn.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")

    new = commands.add_parser("demo", help="train a network on handwritten digits, and measure it", allow_abbrev=False,
                              description="Trains a dense network on handwritten digits, tests it on others, "
                                          "and times the same training on the NumPy reference.")
    new.add_argument("--backend", type=backend, metavar="NAME",
                     help="native, reference or native:<isa> (default: the best here)")
    new.add_argument("--epochs", type=count, default=30, metavar="N", help="passes over the training set (%(default)s)")
    new.add_argument("--hidden", type=widths, default="256,128", metavar="N[,N...]",
                     help="widths of the hidden layers (%(default)s)")
    new.add_argument("--activation", type=one_of("an activation", activations), default="silu", metavar="NAME",
                     help=f"{', '.join(activations)} (%(default)s)")
    new.add_argument("--optimizer", type=one_of("an optimizer", optimizers), default="sgd", metavar="NAME",
                     help=f"{', '.join(optimizers)} (%(default)s; sgd with momentum 0.9)")
    new.add_argument("--lr", type=rate, metavar="X", help="learning rate (default: what suits the optimizer)")
    new.add_argument("--batch-size", type=count, default=32, metavar="N", help="samples in a step (%(default)s)")
    new.add_argument("--seed", type=number(int, "a whole number", lambda n: True), default=0, metavar="N",
                     help="of the split, the first weights and every shuffle (%(default)s)")
    new.add_argument("--json", action="store_true", help="one JSON object on standard output, all else on the other")

    new = commands.add_parser("bench", help="time the kernels beside other libraries", allow_abbrev=False,
                              description="Times pyneuro beside its NumPy reference and, where they are installed, torch, "
                                          "jax, onnxruntime and scikit-learn, on one thread; some minutes.")
    new.add_argument("--quick", action="store_true", help="fewer rows and rounds: half a minute")
    new.add_argument("--rows", default="", metavar="PATTERN",
                     help="only rows whose group or name has it; * and ? stand for anything")
    new.add_argument("--threads", action="store_true", help="also time some rows on more than one thread")
    new.add_argument("--json", nargs="?", const="-", metavar="FILE",
                     help="everything as one JSON object, in a file, or on standard output and all else on the other")
    new.add_argument("--results", nargs="?", const="RESULTS.md", metavar="FILE",
                     help="tables in Markdown in a file (RESULTS.md)")

    new = commands.add_parser("info", help="tell what runs here: CPU, kernels, build, versions", allow_abbrev=False,
                              description="Tells versions, CPU, backends, build and environment variables in force.")
    new.add_argument("--json", action="store_true", help="as one JSON object")
    return parser


# info

def info(args: "argparse.Namespace") -> int:
    if args.json:
        import json
        print(json.dumps(pn.config(), default=str))
    else:
        pn.show_config()
    return 0


# bench

def bench(args: "argparse.Namespace") -> int:
    """Run the suite; what was measured is told even if it is interrupted."""
    import json

    from pyneuro import bench as suite

    out = sys.stderr if args.json == "-" else sys.stdout

    def say(*lines: str) -> None:
        for line in lines:
            print(line, file=out, flush=True)

    rows = suite.choose(args.rows, args.quick)
    if not rows:
        known = "; ".join(dict.fromkeys(row.group for row in suite.ROWS))
        return _failed(f"no row is named like {args.rows!r}; groups are {known}", 2)
    for name in args.results, args.json:          # before minutes go by
        if name and name != "-" and (os.path.isdir(name) or not os.access(os.path.dirname(name) or ".", os.W_OK)):
            return _failed(f"{name} cannot be written", 1)
    run = suite.Run(rows, suite.QUICK if args.quick else suite.FULL, say)
    try:
        run.go(threads=args.threads)
    finally:
        if run.results:
            say(*run.gate_lines())
            if args.json == "-":
                print(json.dumps(run.as_dict()))
            elif args.json:
                with open(args.json, "w") as f:
                    json.dump(run.as_dict(), f, indent=1)
            if args.results and run.complete:
                with open(args.results, "w") as f:
                    f.write(run.as_markdown())
    return 0


# demo: what is trained

@dataclass(frozen=True)
class Config:
    """All that decides the numbers of a training, but for the backend."""
    hidden: tuple[int, ...]
    activation: str
    optimizer: str
    settings: dict[str, Any]         # of the optimizer
    epochs: int
    batch_size: int
    seed: int


@dataclass(frozen=True)
class Epoch:
    epoch: int
    loss: float                      # mean over the epoch's steps
    accuracy: float                  # on the training set, after the epoch
    seconds: float                   # of shuffling and stepping alone


@dataclass(frozen=True)
class Run:
    """A training, and what the network then says of the digits that it has not seen."""
    epochs: list[Epoch]
    preds: np.ndarray
    target: np.ndarray
    steps: int
    samples: int

    @property
    def seconds(self) -> float:
        return sum(e.seconds for e in self.epochs)


def split(target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shuffled indices to train on and to test on: of each class a fifth is for the test."""
    order = pn.randperm(len(target)).numpy()
    order = order[np.argsort(target[order], kind="stable")]
    tested = np.arange(len(order)) % 5 == 0
    return order[~tested], order[tested]


def network(config: Config, features: int) -> nn.Sequential:
    widths = [features, *config.hidden]
    return nn.Sequential(*[nn.Dense(n, m, config.activation) for n, m in pairwise(widths)],
                         nn.Dense(widths[-1], CLASSES))


class Watch(Callback):
    """Times epochs, and after each asks how well the network knows the training set and tells it.

    Raises FloatingPointError when the loss is no longer finite.
    """

    def __init__(self, x: pn.Tensor, labels: pn.Tensor, lr: float, report: Callable[[Epoch], None]) -> None:
        super().__init__()
        self.x, self.labels, self.lr, self.report = x, labels, lr, report
        self.epochs: list[Epoch] = []

    def on_epoch_begin(self, epoch: int) -> None:
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        seconds = time.perf_counter() - self.start
        if not math.isfinite(logs["loss"]):
            raise FloatingPointError(f"the loss is {logs['loss']} in epoch {epoch + 1}; try a smaller --lr than {self.lr:g}")
        self.epochs.append(Epoch(epoch + 1, logs["loss"], accuracy(predict(self.model, self.x), self.labels), seconds))
        self.report(self.epochs[-1])


def train(config: Config, backend: Backend, report: Callable[[Epoch], None]) -> Run:
    """Train on a backend. The clock runs while it shuffles and steps: not while evaluating or reporting."""
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    with pn.backend(backend):
        pn.manual_seed(config.seed)
        learnt, test = split(digits)
        x, labels, x_test = map(pn.from_numpy, (images[learnt], digits[learnt], images[test]))
        model = network(config, images.shape[1])
        optimizer = optim.OPTIMIZERS[config.optimizer](model.parameters(), **config.settings)
        watch = Watch(x, labels, config.settings["lr"], report)
        fit(model, partial(F.cross_entropy, label_smoothing=LABEL_SMOOTHING), optimizer, x, labels, epochs=config.epochs,
            batch_size=config.batch_size, callbacks=[watch], progress=False)
        preds = predict(model, x_test)
    steps = math.ceil(len(learnt) / config.batch_size) * config.epochs
    return Run(watch.epochs, preds, digits[test], steps, len(learnt) * config.epochs)


def predict(model: nn.Module, x: pn.Tensor) -> np.ndarray:
    with pn.no_grad():
        return model(x).argmax(1).numpy()


# demo: what is told

def demo(args: "argparse.Namespace") -> int:
    """Train, test, compare with the reference; text for people on one stream, or JSON for programs."""
    config = Config(args.hidden, args.activation, args.optimizer, settings(args.optimizer, args.lr), args.epochs,
                    args.batch_size, args.seed)
    backend: Backend = args.backend or current_backend()
    out = sys.stderr if args.json else sys.stdout

    def say(*lines: str) -> None:
        print(*lines, sep="\n", file=out, flush=True)

    say(*heading(config, backend), "", f"{'epoch':>5}{'loss':>10}{'train accuracy':>17}{'seconds':>10}")
    run = train(config, backend, lambda e: say(f"{e.epoch:>5}{e.loss:>#10.4g}{e.accuracy:>16.2%} {e.seconds:>9.3f}"))
    right = accuracy(run.preds, run.target)
    matrix = confusion_matrix(run.preds, run.target, CLASSES)
    pair = worst_pair(matrix)
    say("", f"Test accuracy {right:.2%}: {np.trace(matrix)} of {matrix.sum()} digits that it had not seen.", "",
        *table(matrix), "", pair_in_words(pair), "")

    reference = run
    if backend.name != "reference":
        say("The same training on the reference backend, which is NumPy ...")
        reference = train(config, Reference(), progress(config.epochs))
    threads = numpy_threads()
    say(*timing(backend.name, run, reference, threads))

    if args.json:
        import json
        print(json.dumps({
            "test_accuracy": right,
            "speedup": reference.seconds / run.seconds,
            "steps_per_second": run.steps / run.seconds,
            "samples_per_second": run.samples / run.seconds,
            "seconds": run.seconds,
            "reference_seconds": reference.seconds,
            "loss_difference": loss_difference(run, reference),
            "steps": run.steps,
            "samples": run.samples,
            "epochs": [asdict(e) for e in run.epochs],
            "confusion_matrix": matrix.tolist(),
            "worst_pair": pair,
            "backend": backend.name,
            "isa": isa(backend),
            "numpy_threads": threads,
            "seed": config.seed,
            "config": asdict(config),
            "version": pn.__version__,
        }))
    return 0


def settings(optimizer: str, lr: float | None) -> dict[str, Any]:
    """An optimizer's arguments, lr among them."""
    import inspect

    own = inspect.signature(optim.OPTIMIZERS[optimizer]).parameters["lr"].default
    return {"lr": own, **START.get(optimizer, {}), **({} if lr is None else {"lr": lr})}


def isa(backend: Backend) -> str | None:
    """The instruction set of a native backend, also of one inside a Checked or Traced."""
    return getattr(getattr(backend, "inner", backend), "isa", None)


def heading(config: Config, backend: Backend) -> list[str]:
    layers = "-".join(map(str, (64, *config.hidden, CLASSES)))
    numbers = ", ".join(f"{name} {value:g}" for name, value in config.settings.items())
    return [f"pyneuro {pn.__version__} learns to read digits of 8 x 8 pixels (UCI; Alpaydin and Kaynak 1998)",
            f"network {layers} with {config.activation}; {config.optimizer}, {numbers}; batches of {config.batch_size}",
            f"float32 on {backend.name}, seed {config.seed}; cross-entropy, labels smoothed by {LABEL_SMOOTHING:g}"]


def progress(epochs: int) -> Callable[[Epoch], None]:
    """A counter on a terminal, nothing elsewhere."""
    def report(e: Epoch) -> None:
        if sys.stderr.isatty():
            wipe = "\r\033[K" if e.epoch == epochs else ""
            print(f"\repoch {e.epoch} of {epochs}", end=wipe, file=sys.stderr, flush=True)
    return report


def table(matrix: np.ndarray) -> list[str]:
    """A row for each true digit, a column for each predicted one, a dot for none."""
    wide = max(4, len(str(matrix.max())) + 1)
    cells = [[f"{n or '.':>{wide}}" for n in row] for row in matrix]
    return [f"{'read as':<8}" + "".join(f"{j:>{wide}}" for j in range(CLASSES)),
            *(f"{'true' if i == 0 else '':<6}{i:>2}" + "".join(row) for i, row in enumerate(cells))]


def worst_pair(matrix: np.ndarray) -> dict[str, int] | None:
    """The true and the predicted class that were mixed up most often (of equals the first), or None."""
    wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    true, predicted = divmod(int(wrong.argmax()), len(matrix))
    if not wrong[true, predicted]:
        return None
    return {"true": true, "predicted": predicted, "count": int(wrong[true, predicted]), "of": int(matrix[true].sum())}


def pair_in_words(pair: dict[str, int] | None) -> str:
    if pair is None:
        return "No digit read as another."
    times = {1: "once", 2: "twice"}.get(pair["count"], f"{pair['count']} times")
    return f"Worst confusion: {pair['true']} read as {pair['predicted']}, {times} in {pair['of']}."


def timing(name: str, run: Run, reference: Run, threads: int | None) -> list[str]:
    def row(name: str, run: Run) -> str:
        return (f"{name:<16}{run.steps:>8} steps in {run.seconds:>8.3f} s{run.steps / run.seconds:>12,.0f} steps/s"
                f"{run.samples / run.seconds:>14,.0f} samples/s")

    if reference is run:
        return [row(name, run), f"This is the reference itself: speedup 1. {threads_in_words(threads)}"]
    return [row(name, run), row("reference", reference),
            f"Speedup {reference.seconds / run.seconds:.2f} over the reference. {name} runs on one thread; "
            f"{threads_in_words(threads)}",
            f"The losses of the epochs agree to {loss_difference(run, reference):.1e}."]


def loss_difference(run: Run, reference: Run) -> float:
    """The largest relative difference of two runs' losses in an epoch."""
    return max(abs(e.loss - r.loss) / abs(r.loss) for e, r in zip(run.epochs, reference.epochs))


def numpy_threads() -> int | None:
    """How many threads NumPy's BLAS may use, or None where that cannot be told."""
    try:
        from threadpoolctl import threadpool_info  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        return 1 if ONE_THREAD.items() <= os.environ.items() else None
    return max((pool["num_threads"] for pool in threadpool_info()), default=1)


def threads_in_words(threads: int | None) -> str:
    if threads == 1:
        return "NumPy runs on one thread."
    told = "as many threads as its BLAS likes" if threads is None else f"up to {threads} threads"
    return f"NumPy runs on {told} (OMP_NUM_THREADS=1 pins it)."
