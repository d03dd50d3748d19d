#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Would the tests notice? Each row below breaks one line of a copy of the sources; its tests have to fail.

    python .ci/mutants.py [--all] [word ...]     a word: only rows that have it in their file or their description

The copy is built without optimisation, for one ISA, and its Python is not compiled: a row costs seconds. A kernel is broken
for float32 alone. Needs Cython, setuptools, NumPy and pytest in this Python, and a C compiler. If a row's old text is not found exactly once, or the new
one does not compile, that is an error: mend the table.
"""
import argparse
import os
import shlex
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
    tests: str                   # pytest's arguments
    always: bool = True          # False: only with --all

    @property
    def cost(self) -> int:
        """0: nothing is compiled; 1: not the kernels; 2: these too, which takes longest."""
        return 0 if self.file.endswith(".py") else 1 if self.file.startswith(("csrc/core/", "pyneuro/")) else 2


MUTANTS = [
    # The definition
    Mutant("a wrong derivative", "pyneuro/kernels/reference.py",
           "(1 + _within(x, 800) * _sigmoid(-x))", "(1 - _within(x, 800) * _sigmoid(-x))",
           "tests/test_gradients.py -k 'test_gradient and silu'"),
    Mutant("a wrong second derivative", "pyneuro/kernels/reference.py",
           "(2 - np.square(_within(x, 40)))", "(1 - np.square(_within(x, 40)))",
           "tests/test_gradients.py -k 'test_gradient_of_the_gradient and gelu'", always=False),

    # The table of ops
    Mutant("a sign lost in a rule", "pyneuro/ops.py",
           '"x - y", (lambda g: g, lambda g: -g)', '"x - y", (lambda g: g, lambda g: g)',
           "tests/test_gradients.py -k 'test_gradient and sub'"),
    Mutant("a broadcast undone along too few axes", "pyneuro/ops.py",
           "if n == 1 and x.shape[i + lead] != 1)", "if n == 1 and x.shape[i + lead] > 99)",
           "tests/test_gradients.py -k 'test_gradient and add'"),
    Mutant("a gradient transposed", "pyneuro/ops.py",
           "a.mT @ g if node.needs[1]", "(g.mT @ a).mT * 2 if node.needs[1]",
           "tests/test_gradients.py -k 'test_gradient and matmul'", always=False),

    # Activations and losses in C
    Mutant("a wrong derivative", "csrc/activations.def",
           "dy * vfma(-y, y, vset(1))", "dy * vfma(y, y, vset(1))",
           "tests/test_backends.py -k 'test_kernel and tanh_grad'"),
    Mutant("a wrong second derivative", "csrc/activations.def",
           "-2 * vsign(x)", "2 * vsign(x)",
           "tests/test_backends.py -k 'test_kernel and softsign_curve'", always=False),
    Mutant("a loss without its 1/2", "csrc/losses.def",
           "vset((T)0.5) * (x - t) * (x - t), a", "(x - t) * (x - t), a",
           "tests/test_backends.py -k 'test_kernel and huber'", always=False),

    # Vectors and loops
    Mutant("a tail of one element left out", "csrc/kernels/vec.h",
           "if (n > 0)\n        vstore_part(out,", "if (n > 1)\n        vstore_part(out,",
           "tests/test_backends.py -k 'test_kernel and relu'", always=False),
    Mutant("a tail written beyond its end", "csrc/kernels/pack.h",
           "else vstore_part(p, x, n);", "else vstore(p, x);",
           "tests/test_backends.py -k 'test_kernel and (matmul or dense)'", always=False),
    Mutant("an odometer that does not turn back", "csrc/core/run.c",
           "? 1 : 1 - c->dim[axis];", "? 1 : 0;",
           "tests/test_backends.py -k 'broadcasts and add'"),
    Mutant("a block gathered with the wrong stride", "csrc/core/run.c",
           "move(block[i], 1, at, stride, c.dim[0], c.size[i]);", "move(block[i], 1, at, 1, c.dim[0], c.size[i]);",
           "tests/test_backends.py -k 'any_layout and mul'", always=False),

    # Products
    Mutant("a stride left out", "csrc/kernels/gemm.c",
           "from = b + p * g->bp + q * g->bj;", "from = b + p * g->bp + q;",
           "tests/test_backends.py -k 'matmul or dense_identity'"),
    Mutant("an earlier cut forgotten", "csrc/kernels/gemm.c",
           "end->what = (p + CUT < depth ? 0 : last) | (p > 0 ? END_ADD : add);", "end->what = (p + CUT < depth ? 0 : last) | add;",
           "tests/test_backends.py -k matmul", always=False),
    Mutant("a bias before the sums are complete", "csrc/kernels/gemm.c",
           "(p + CUT < depth ? 0 : last)", "last",
           "tests/test_backends.py -k dense", always=False),
    Mutant("relu's derivative at other rows", "csrc/kernels/gemm.c",
           "if (end->what & END_GATE) end->gate += height * oi;", "",
           "tests/test_passes.py tests/test_plan.py -k 'derivative or bitwise or random'", always=False),
    Mutant("a packed tile wider than there is", "csrc/kernels/gemm.c",
           "g->pack_a = g->m > TILE_FEW && (", "g->pack_a = (",
           "tests/test_backends.py -k same_bits_in_any_batch", always=False),
    Mutant("the same product, cut elsewhere: other bits", "csrc/kernels/gemm.c",
           "cut < g->k; cut += CUT) {\n        int64_t terms = least(CUT, g->k - cut)",
           "cut < g->k; cut += 2 * CUT) {\n        int64_t terms = least(2 * CUT, g->k - cut)",
           "tests/test_backends.py -k same_bits_in_any_batch", always=False),
    Mutant("a bias left out", "csrc/kernels/dense.c",
           "const vec sum = z + bias;", "const vec sum = z + 0 * bias;",
           "tests/test_backends.py -k 'test_kernel and dense_relu'", always=False),

    # Rows
    Mutant("a label one beyond the last class let through", "csrc/kernels/index.h",
           "at >= extent)", "at > extent)",
           "tests/test_errors.py", always=False),
    Mutant("an ignored row that still counts", "csrc/kernels/softmax.c",
           "if (labels[q * ls] != ignore) w[q] =", "w[q] = labels[q * ls] == ignore ? 1 :",
           "tests/test_backends.py -k 'test_kernel and cross_entropy'"),
    Mutant("empty lanes of a tail that count", "csrc/kernels/reduce.c",
           "vsel(vlane() < viset((TI)n), term, vset(fold_start(op)));", "term;",
           "tests/test_backends.py -k 'test_kernel and (min or var)'", always=False),

    # Optimizers and random numbers
    Mutant("beta2 in beta1's place", "csrc/kernels/optim.c",
           "const T beta1 = (T)hyper[1], rest1 = (T)(1 - hyper[1]);   ", "const T beta1 = (T)hyper[2], rest1 = (T)(1 - hyper[1]);   ",
           "tests/test_backends.py -k 'test_kernel and adam'"),
    Mutant("Nesterov without its momentum", "csrc/kernels/optim.c",
           "if (nesterov) d += mu * velocity;", "if (nesterov) d += velocity;",
           "tests/test_backends.py -k momentum", always=False),
    Mutant("a wrong constant of Philox", "csrc/kernels/random.h",
           "0xCD9E8D57u", "0xCD9E8D59u",
           "tests/test_random.py", always=False),

    # The binding
    Mutant("an axis of one that is not broadcast", "pyneuro/kernels/_native.pyx",
           "if j >= missing and cnp.PyArray_DIMS(a)[j - missing] != 1:", "if j >= missing:",
           "tests/test_backends.py -k broadcasts"),
    Mutant("an overlap not seen", "pyneuro/kernels/_native.pyx",
           "low[i] += reach", "low[i] -= reach",
           "tests/test_errors.py", always=False),
    Mutant("operands of other shapes taken the short way", "pyneuro/kernels/_native.pyx",
           "            elif not same_shape(a, b):\n                return None\n", "",
           "tests/test_eager.py -k operators"),
    Mutant("a gradient lost the short way", "pyneuro/kernels/_native.pyx",
           "or (<TensorBase>x).needs_grad or", "or", "tests/test_eager.py -k operators", always=False),
    Mutant("blocks of memory that are too short", "csrc/core/memory.c",
           "(FINE + class % FINE + 1) <<", "(FINE + class % FINE) <<",
           "tests/test_eager.py -k hold_what", always=False),

    # Threads
    Mutant("a part that computes what another does", "csrc/core/run.c",
           "d->parts, number + 1);", "d->parts, number + 2 > d->parts ? d->parts : number + 2);",
           "tests/test_threads.py -k 'any_number_of_threads and scatter_add'"),
    Mutant("a slot that stays whole where the others are cut", "pyneuro/kernels/_native.pyx",
           "c.along[i] = j", "c.along[i] = j if i else -1",
           "tests/test_threads.py -k 'any_number_of_threads and matmul'", always=False),
    Mutant("an axis that must not be cut", "csrc/kernels.def",
           '-> dw:nk db:n | n")', '-> dw:nk db:n | nk")',
           "tests/test_threads.py -k 'every_written_slot or parts_have'", always=False),
    Mutant("a home that begins with its neighbour's parts", "csrc/core/threads.c",
           "pool.parts) - left;", "pool.parts) - (left > 1 ? 1 : left);",
           "tests/test_threads.py -k any_number_of_threads", always=False),
    Mutant("a step on other rows than their gradient", "csrc/kernels/follow.h",
           "f->first + r * f->ci + j", "r * f->ci + j",
           "tests/test_passes.py -k step_beside", always=False),
    Mutant("a child that believes in its parent's workers", "csrc/core/threads.c",
           "    pool.workers = 0;\n", "",
           "tests/test_threads.py -k own_workers"),
    Mutant("a pool that a child finds reserved for ever", "csrc/core/threads.c",
           "    atomic_flag_clear(&pool.reserved);\n", "",
           "tests/test_threads.py -k forks_while", always=False),

    # Autograd, layers, optimizers
    Mutant("a second gradient that replaces the first", "pyneuro/graph.py",
           "else leaf._grad._accumulate(g)", "else g",
           "tests/test_autograd.py -k three_backwards"),
    Mutant("a saved tensor that may be overwritten", "pyneuro/graph.py",
           "t.storage).version != version:", "t.storage).version < version:",
           "tests/test_autograd.py -k overwriting"),
    Mutant("a mode that is not set for who asks", "pyneuro/replay.py",
           "self.silent = self.free[0].silent and not self.others and not steps", "self.silent = True",
           "tests/test_plan.py -k decorated_call"),
    Mutant("a dict of which one thing is looked at", "pyneuro/kernels/_replay.pxi",
           "            if look[i].last:\n                place[at].version = seen[at]\n", "            place[at].version = seen[at]\n",
           "tests/test_plan.py -k changes_between"),
    Mutant("a result in memory that somebody has", "pyneuro/kernels/_native.pyx",
           "if (Py_REFCNT(o) != 1 || ", "if (0 || ",
           "tests/test_plan.py -k 'still_held or renewed'"),
    Mutant("an argument that moved and is not looked at", "pyneuro/kernels/_replay.pxi",
           "            if cnp.PyArray_DATA(<cnp.ndarray>t.array) != self.now[i]:\n                return True\n", "            pass\n",
           "tests/test_plan.py -k that_moves"),
    Mutant("columns where others want rows", "pyneuro/passes.py",
           "if not _takes_columns(call):", "if False:",
           "tests/test_passes.py -k by_columns", always=False),
    Mutant("a third of the parameters left out", "csrc/kernels/optim.c",
           "{ ADAM_STEP(vroot_plus) }", "{ }",
           "tests/test_backends.py -k 'every_switch and adam'", always=False),
    Mutant("a wrong bound of the first weights", "pyneuro/nn/layers.py",
           "init.kaiming_uniform_(self.weight, a=math.sqrt(5))", "init.kaiming_uniform_(self.weight, a=math.sqrt(2))",
           "tests/test_torch.py -k linear_starts"),
    Mutant("betas swapped", "pyneuro/optim/optimizers.py",
           '"beta2": ("betas", 1)', '"beta2": ("betas", 0)',
           "tests/test_torch.py -k test_optimizer"),
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
        for name in ("tensor", "ops", "graph"):
            (folder / f"pyneuro/{name}.pxd").unlink(missing_ok=True)
        copy = cls(folder)
        copy.build()
        return copy

    def run(self, *command: str, timeout: float | None = None, **env: str) -> subprocess.CompletedProcess:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PYNEURO_") and k != "PYTHONPATH"}
        return subprocess.run(command, cwd=self.folder, env=clean | {"PYTHONDONTWRITEBYTECODE": "1"} | env, check=False,
                              timeout=timeout, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)

    def build(self) -> None:
        done = self.run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", PYNEURO_DEBUG="1")
        if done.returncode:
            raise SystemExit(f"{done.stdout[-4000:]}\n{self.folder} does not build")

    def test(self, arguments: str) -> tuple[int, str]:
        """pytest's exit code and output; a crash is negative, and so is a time-out."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=line"]
        try:
            done = self.run(*command, *shlex.split(arguments), timeout=TIMEOUT)
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
        if self.mutant.cost:
            later = time.time() + 1
            for path in self.copy.folder.glob("build/temp*/*64/**/*.o"):      # as they are: never built of broken sources
                os.utime(path, (later, later))
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
    seconds = time.monotonic() - start
    print(f"{'caught' if caught else 'MISSED':<8}{mutant.file:<30}{mutant.what} ({seconds:.0f} s)", flush=True)
    if caught:
        return ""
    why = "    survived" if code == 0 else f"    exit code {code}: {output[-2000:]}"
    return f"{mutant.file}: {mutant.what}\n    {mutant.old!r}\n -> {mutant.new!r}\n    pytest {mutant.tests}\n{why}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every row, not only those of a CI run")
    parser.add_argument("words", nargs="*", help="only rows with one of these in file or description")
    given = parser.parse_args()
    if wrong := stale(MUTANTS):
        print("\n".join(wrong))
        return 1
    chosen = [m for m in MUTANTS if (given.all or m.always or given.words)
              and (not given.words or any(w in m.file or w in m.what for w in given.words))]
    # A Python mutant needs the extension as it was built first; kernels that are mended are compiled only with the next.
    chosen.sort(key=lambda m: m.cost)
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
