#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Would the tests notice? Each row below breaks one line of a copy of the sources; its tests have to fail.

    python .ci/mutants.py [--all] [word ...]     a word: only rows with it in their file or their comment

The copy is built without optimisation, for one ISA, and its hot Python files are not compiled, so that a row costs seconds.
Needs Cython, setuptools, NumPy and pytest in this Python, and a C compiler. A row whose old text is not found exactly once
is an error, as is one whose change does not compile: mend the table.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 240                    # seconds: tests that hang have noticed


@dataclass(frozen=True)
class Mutant:
    what: str
    file: str
    old: str
    new: str
    tests: str                   # arguments of pytest, in the folder of the tests
    always: bool = True          # False: only with --all

    @property
    def compiled(self) -> bool:
        return not self.file.endswith(".py")


BACKENDS = "test_backends.py -k"
GRADIENTS = "test_gradients.py -k"

MUTANTS = [
    # The definition
    Mutant("a wrong derivative", "pyneuro/kernels/reference.py",
           "_sigmoid(x) * (1 + _within(x, 800) * _sigmoid(-x))", "_sigmoid(x) * (1 - _within(x, 800) * _sigmoid(-x))",
           f"{GRADIENTS} 'test_gradient and silu'"),
    Mutant("a wrong second derivative", "pyneuro/kernels/reference.py",
           "(2 - np.square(_within(x, 40)))", "(1 - np.square(_within(x, 40)))",
           f"{GRADIENTS} 'test_gradient_of_the_gradient and gelu'", always=False),
    # The table of ops
    Mutant("a sign lost in a rule", "pyneuro/ops.py",
           '"x - y", (lambda g: g, lambda g: -g)', '"x - y", (lambda g: g, lambda g: g)', f"{GRADIENTS} 'test_gradient and sub'"),
    Mutant("a broadcast undone along too few axes", "pyneuro/ops.py",
           "if n == 1 and x.shape[i + lead] != 1)", "if n == 1 and x.shape[i + lead] > 99)", f"{GRADIENTS} 'test_gradient and add'"),
    Mutant("a gradient for the wrong operand", "pyneuro/ops.py",
           "a.mT @ g if node.needs[1]", "g.mT @ a if node.needs[1]", f"{GRADIENTS} 'test_gradient and matmul'", always=False),
    # Activations and losses in C
    Mutant("a wrong derivative", "csrc/activations.def",
           "dy * vfma(-y, y, vset(1))", "dy * vfma(y, y, vset(1))", f"{BACKENDS} 'test_kernel and tanh_grad'"),
    Mutant("a wrong second derivative", "csrc/activations.def",
           "vsel(x > 0, vset(-2), vset(2))", "vsel(x > 0, vset(2), vset(2))",
           f"{BACKENDS} 'test_accuracy and softsign or test_special_values and softsign or test_op_and and softsign'", always=False),
    Mutant("a loss without its 1/2", "csrc/losses.def",
           "vset((T)0.5) * (x - t) * (x - t)", "(x - t) * (x - t)", f"{BACKENDS} 'test_kernel and huber'", always=False),
    # Vectors and loops
    Mutant("a tail of one element left out", "csrc/kernels/vec.h",
           "    if (n > 0)\n        vstore_part(out,", "    if (n > 1)\n        vstore_part(out,", f"{BACKENDS} 'test_kernel and relu'"),
    Mutant("a tail that is stored whole", "csrc/kernels/pack.h",
           "else vstore_part(p, x, n);", "else vstore(p, x);", f"{BACKENDS} 'test_kernel and matmul'", always=False),
    Mutant("an odometer that does not turn back", "csrc/core/run.c",
           "? 1 : 1 - c->dim[axis];", "? 1 : 0;", f"{BACKENDS} 'broadcasts and add'"),
    Mutant("a block gathered with the wrong stride", "csrc/core/run.c",
           "move(block[i], 1, at, stride, c.dim[0], c.size[i]);", "move(block[i], 1, at, 1, c.dim[0], c.size[i]);",
           f"{BACKENDS} 'any_layout and mul'", always=False),
    # Products
    Mutant("a stride left out", "csrc/kernels/gemm.c",
           "right + p * g->bp + j * g->bj, c +", "right + p * g->bp + j, c +", f"{BACKENDS} 'matmul or dense_identity'"),
    Mutant("an earlier cut forgotten", "csrc/kernels/gemm.c",
           "oi, add || p > 0);", "oi, add);", f"{BACKENDS} matmul"),
    Mutant("the same product, cut elsewhere: other bits", "csrc/kernels/gemm.c",
           "cut < g->k; cut += CUT) {\n            int64_t end = least(cut + CUT, g->k);",
           "cut < g->k; cut += 2 * CUT) {\n            int64_t end = least(cut + 2 * CUT, g->k);", f"{BACKENDS} same_bits_in_any_batch"),
    Mutant("a bias left out", "csrc/kernels/dense.c",
           "vec x = vload(z + j) + vload(bias + j);", "vec x = vload(z + j);", f"{BACKENDS} 'test_kernel and dense_relu'"),
    # Rows
    Mutant("a label checked against one class too many", "csrc/kernels/index.h",
           "at >= extent)", "at > extent)", "-k 'label or labels or index or bounds'"),
    Mutant("an ignored row that still counts", "csrc/kernels/softmax.c",
           "losses[i * STRIDE(4, 0)] = 0;\n        if (label == ignore) continue;\n\n        /* lse",
           "losses[i * STRIDE(4, 0)] = 0;\n        if (label == ignore) { weights += 1; continue; }\n\n        /* lse",
           f"{BACKENDS} 'test_kernel and cross_entropy'"),
    Mutant("lanes folded in another order on wider vectors", "csrc/kernels/reduce.c",
           "for (int l = 0; l < half; l++) lane[l] = FOLD_TWO(op, lane[l], lane[l + half]);",
           "for (int l = 0; l < half; l++) lane[l] = FOLD_TWO(op, lane[2 * l], lane[2 * l + 1]);",
           f"{BACKENDS} 'test_kernel_in_any_layout and column_sum or same_bits and sum'", always=False),
    # Optimizers and random numbers
    Mutant("beta2 in beta1's place", "csrc/kernels/optim.c",
           "const T beta1 = (T)hyper[1], rest1", "const T beta1 = (T)hyper[2], rest1", f"{BACKENDS} 'test_kernel and adam'"),
    Mutant("Nesterov without its look ahead", "csrc/kernels/optim.c",
           "if (nesterov) d += mu * velocity;", "if (nesterov) d += velocity;", f"{BACKENDS} momentum", always=False),
    Mutant("a wrong constant of Philox", "csrc/kernels/random.h",
           "0xCD9E8D57u", "0xCD9E8D59u", f"{BACKENDS} random_numbers", always=False),
    # The binding
    Mutant("an axis of one that is not broadcast", "pyneuro/kernels/_native.pyx",
           "if j >= missing and cnp.PyArray_DIMS(a)[j - missing] != 1:", "if j >= missing:", f"{BACKENDS} broadcasts"),
    Mutant("a negative stride that reaches upwards", "pyneuro/kernels/_native.pyx",
           "low[i] += reach", "high[i] -= reach", "-k overlap", always=False),
    # Autograd, tensors, layers, optimizers
    Mutant("a second gradient that replaces the first", "pyneuro/autograd.py",
           "else leaf._grad._accumulate(g)", "else g", "-k 'accumulate or backward or backwards'"),
    Mutant("a saved tensor that may be overwritten", "pyneuro/autograd.py",
           "storage.version != version:", "storage.version < version:", "-k 'version or in_place or inplace'"),
    Mutant("a bound of the initial weights", "pyneuro/nn/layers.py",
           "init.kaiming_uniform_(self.weight, a=math.sqrt(5))", "init.kaiming_uniform_(self.weight)", "-k 'init or Linear or linear'"),
    Mutant("betas swapped", "pyneuro/optim/optimizers.py",
           '[name == "beta2"]', '[name == "beta1"]', "-k 'Adam or adam'"),
]


class Copy:
    """The sources in a folder of their own, to break and to mend."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def fresh(cls, folder: Path) -> "Copy":
        """From the checkout: one ISA, the best of this machine that has FMA; the hot files as plain Python; built."""
        skip = shutil.ignore_patterns("*.so", "__pycache__", ".*", "build", "*.egg-info")
        for name in ("csrc", "pyneuro", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=skip)
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy2(ROOT / name, folder)
        cpu = Path("/proc/cpuinfo")
        isa = "avx2" if cpu.exists() and {"avx2", "fma"} <= set(cpu.read_text().split()) else "baseline"
        for path in (folder / "csrc/isa").glob("*.c"):
            if path.stem != isa:
                path.unlink()
        for name in ("tensor", "ops", "autograd"):
            (folder / f"pyneuro/{name}.pxd").unlink(missing_ok=True)
        copy = cls(folder)
        copy.build()
        return copy

    def run(self, *command: str, timeout: float | None = None, **env: str) -> subprocess.CompletedProcess:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PYNEURO_") and k != "PYTHONPATH"}
        return subprocess.run(command, cwd=self.folder, env=clean | {"PYTHONDONTWRITEBYTECODE": "1"} | env, timeout=timeout,
                              text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def build(self) -> None:
        done = self.run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", PYNEURO_DEBUG="1")
        if done.returncode:
            raise SystemExit(f"{done.stdout[-4000:]}\n{self.folder} does not build")

    def test(self, arguments: str) -> tuple[int, str]:
        """pytest's exit code and output; a crash is negative, and so is a time-out."""
        command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider --tb=line {arguments}"
        if arguments.startswith("-k"):
            command += " tests"
        else:
            command = command.replace(" test_", " tests/test_")
        try:
            done = self.run("/bin/sh", "-c", "exec " + command, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return -1, "timed out"
        return done.returncode, done.stdout

    def broken(self, mutant: Mutant) -> "Broken":
        return Broken(self, mutant)


class Broken:
    """with copy.broken(mutant): its line is changed."""

    def __init__(self, copy: Copy, mutant: Mutant) -> None:
        self.copy, self.mutant, self.path = copy, mutant, copy.folder / mutant.file

    def __enter__(self) -> None:
        self.text = self.path.read_text()
        self.path.write_text(self.text.replace(self.mutant.old, self.mutant.new))
        if self.mutant.compiled:
            self.copy.build()

    def __exit__(self, *_: object) -> None:
        self.path.write_text(self.text)             # newer than the build: the next one compiles it again


def stale(mutants: list[Mutant]) -> list[str]:
    """What is wrong with the rows themselves."""
    found = [(m, (ROOT / m.file).read_text().count(m.old)) for m in mutants]
    return [f"{m.file} ({m.what}): found {n} times, not once: {m.old!r}" for m, n in found if n != 1]


def verdict(copy: Copy, mutant: Mutant) -> str:
    """Why the mutant is not caught, or nothing."""
    start = time.monotonic()
    with copy.broken(mutant):
        code, output = copy.test(mutant.tests)
    caught = code == 1 or code < 0 or code > 128                                 # failed, crashed or hung
    print(f"{'caught' if caught else 'MISSED':<8}{mutant.file:<34}{mutant.what} ({time.monotonic() - start:.0f} s)", flush=True)
    if caught:
        return ""
    return f"{mutant.file}: {mutant.what}\n    {mutant.old!r}\n -> {mutant.new!r}\n    pytest {mutant.tests}: exit code {code}\n" \
           f"{'    survived' if code == 0 else output[-2000:]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every row, not only those of a CI run")
    parser.add_argument("words", nargs="*", help="only rows with one of these in file or comment")
    given = parser.parse_args()
    if wrong := stale(MUTANTS):
        print("\n".join(wrong))
        return 1
    chosen = [m for m in MUTANTS if (given.all or m.always or given.words)
              and (not given.words or any(w in m.file or w in m.what for w in given.words))]
    chosen.sort(key=lambda m: m.compiled)            # a Python mutant needs the extension as it was built first
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pyneuro-mutants-") as temp:
        first = Copy.fresh(Path(temp, "0"))
        copies: SimpleQueue[Copy] = SimpleQueue()
        copies.put(first)
        for i in range(1, min(os.cpu_count() or 1, 4)):
            shutil.copytree(first.folder, Path(temp, str(i)))
            copies.put(Copy(Path(temp, str(i))))

        def with_copy(f, *arguments):
            copy = copies.get()
            try:
                return f(copy, *arguments)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(copies.qsize()) as pool:
            selections = sorted({m.tests for m in chosen})
            healthy = list(pool.map(lambda tests: with_copy(Copy.test, tests), selections))
            bad = [f"pytest {tests}: exit code {code} without any mutant\n{output[-3000:]}"
                   for tests, (code, output) in zip(selections, healthy) if code]
            if bad:
                print("\n".join(bad))
                return 1
            print(f"ready in {time.monotonic() - start:.0f} s", flush=True)
            missed = [why for why in pool.map(lambda m: with_copy(verdict, m), chosen) if why]
    print("\n".join(missed), end="\n" * bool(missed))
    print(f"{len(chosen) - len(missed)} of {len(chosen)} mutants caught in {time.monotonic() - start:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
