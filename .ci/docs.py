#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Makes docs/ops.md from the op table, and with matplotlib docs/activations/*.svg; `--check`: is the text what stands there?

Formulas, ranges and parameters are those of pyneuro/ops.py; derivatives are the first lines of the gradients in reference.py.
"""
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

import pyneuro as pn
import pyneuro.nn.functional as F
from pyneuro.kernels import reference
from pyneuro.kernels.signature import KERNELS
from pyneuro.ops import OPS, Op

DOCS = Path(__file__).parents[1] / "docs"
INTRODUCTION = """\
# Ops

Made by `.ci/docs.py` from [the op table](../pyneuro/ops.py) and [the reference](../pyneuro/kernels/reference.py): change these,
not this page.

`x` is the input, `y` the result, `dy` and `dx` are the gradients of the loss along them, `g` is the gradient of `dx`. Where a
row reads `y` in place of `x`, its derivative is written in it, and the input is not kept.
"""
KINDS = {
    "elementwise": "Element by element", "reduction": "Reductions", "scan": "Along an axis", "softmax": "Softmax and its like",
    "matrix": "Products", "decomposition": "Inverses and decompositions", "norm": "Normalisation",
    "index": "Chosen elements", "view": "Views", "random": "Random",
}


def defined(kernel: str, of: str) -> str:
    """What the reference says that a kernel writes to a slot, as a formula."""
    text = " ".join((reference.DEFINITIONS[kernel].__doc__ or "").split())
    return text.removeprefix(f"{of} = ").removesuffix(".")


def code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`" if text else ""


def table(head: str, rows: Iterable[tuple[str, ...]]) -> str:
    columns = head.split(" | ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def parameters(op: Op) -> str:
    return ", ".join([name if value is None else f"{name}={value:g}" for name, value in op.params])


def of_kind(kind: str) -> list[Op]:
    return [op for op in OPS.values() if op.kind == kind]


def activation(op: Op) -> tuple[str, ...]:
    names = " ".join([f"**{op.name}**", code(f"nn.{op.module}") if op.module else "", code(parameters(op))]).strip()
    derivatives = [code(defined(f"{op.name}_{which}", "dx")) for which in ("grad", "curve")]
    flags = ["yes" if flag else "no" for flag in (op.monotone, f"dense_{op.name}" in KERNELS)]
    return (names, code(op.formula), *derivatives, code(op.range), *flags,
            f"![{op.name}](activations/{op.name}.svg)")


def loss(op: Op) -> tuple[str, ...]:
    return f"**{op.name}** {code(parameters(op))}".strip(), code(op.formula), code(defined(f"{op.name}_grad", "dx"))


def text() -> str:
    parts = [
        INTRODUCTION,
        "## Activations\n\n"
        "Functions of these names are in `pyneuro.nn.functional`, methods in `Tensor`; the plots show the value and, dashed, the\n"
        "derivative. Rising: it never falls. Fused: there is a dense layer that ends in it, which is one kernel.\n",
        table("activation | y | dx | second derivative | range | rising | fused | plot", map(activation, of_kind("activation"))),
        "## Losses of pairs\n\n"
        "Of a prediction `x` and a target `t`, before reduction; `dl` is the gradient of the loss that it is part of.\n",
        table("loss | l | dx", map(loss, of_kind("pair_loss"))),
        "## Losses against class numbers\n",
        table("loss | value", [(f"**{op.name}**", code(op.formula)) for op in of_kind("labels")]),
    ]
    for kind, title in KINDS.items():
        parts += [f"## {title}\n", table("op | value", [(f"**{op.name}**", code(op.formula)) for op in of_kind(kind)])]
    return "\n".join(parts)


def with_gaps(y: np.ndarray) -> np.ndarray:
    """NaN where y jumps, so that no line is drawn there."""
    y = y.copy()
    y[1:][abs(np.diff(y)) > 0.4] = np.nan
    return y


def curves(op: Op) -> tuple[np.ndarray, ...]:
    """x, the value and the derivative, on [-5, 5]."""
    grid = np.linspace(-5, 5, 401)
    x = pn.tensor(grid, requires_grad=True)
    given = {name: {"alpha": 0.5, "threshold": -1.0, "value": -2.0}[name] for name, value in op.params if value is None}
    function: Callable = getattr(F, op.name, None) or getattr(x, op.name)
    y = function(x, **given) if hasattr(F, op.name) else function()
    y.sum().backward()
    return grid, with_gaps(y.detach().numpy()), with_gaps(x.grad.numpy())


def draw(op: Op, plots: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": op.name, "svg.fonttype": "none", "font.size": 7, "path.simplify_threshold": 0.3}):
        figure = Figure((2.4, 1.6), layout="constrained")
        axes = figure.subplots()
        x, y, dx = curves(op)
        axes.plot(x, y, "C0")
        axes.plot(x, dx, "C1--", linewidth=1)
        axes.axhline(0, color="0.8", linewidth=0.5, zorder=0)
        axes.axvline(0, color="0.8", linewidth=0.5, zorder=0)
        shown = np.concatenate([y, dx])
        axes.set(xlim=(-5, 5), ylim=(max(np.nanmin(shown), -3) - 0.2, min(np.nanmax(shown), 3) + 0.2), xticks=[-4, 0, 4])
        axes.locator_params(axis="y", nbins=4)
        axes.spines[:].set_visible(False)
        figure.savefig(plots / f"{op.name}.svg", metadata={"Date": None, "Creator": None})


def main() -> None:
    page, plots, made = DOCS / "ops.md", DOCS / "activations", text()
    drawn = {path.stem for path in plots.glob("*.svg")}
    if "--check" in sys.argv[1:]:
        if not page.exists() or page.read_text() != made:
            sys.exit("docs/ops.md is not what the tables say: run .ci/docs.py")
        if drawn != {op.name for op in of_kind("activation")}:
            sys.exit("docs/activations has not one plot for each activation: run .ci/docs.py")
        return
    plots.mkdir(parents=True, exist_ok=True)
    page.write_text(made)
    for op in of_kind("activation"):
        draw(op, plots)
    for name in drawn - {op.name for op in of_kind("activation")}:
        (plots / f"{name}.svg").unlink()
    size = sum(path.stat().st_size for path in DOCS.rglob("*") if path.is_file())
    print(f"{len(OPS)} ops, {len(of_kind('activation'))} plots, {size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
