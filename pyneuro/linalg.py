# SPDX-License-Identifier: BSD-3-Clause
"""Products and norms of tensors, under the names of torch and torch.linalg. Everything comes down to matmul and bmm."""

import math
from typing import Any

import numpy as np

from .kernels import ShapeError
from .tensor import Tensor, _constant, _one_dim, as_tensor, matmul

# Products


def _plus(input: Tensor, product: Tensor, beta: float, alpha: float) -> Tensor:
    """beta input + alpha product; with beta = 0 nothing of input, not its NaN either."""
    if not product.is_floating_point():
        beta, alpha = int(beta), int(alpha)
    y = product if alpha == 1 else product * alpha
    if beta == 0:
        return y + input.detach().masked_fill(_constant(True, np.dtype(bool)), 0)
    return (input if beta == 1 else input * beta) + y


def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta input + alpha mat1 mat2"""
    return _plus(input, mat1.mm(mat2), beta, alpha)


def addmv(input: Tensor, mat: Tensor, vec: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta input + alpha mat vec"""
    return _plus(input, mat.mv(vec), beta, alpha)


def addr(input: Tensor, vec1: Tensor, vec2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta input + alpha vec1 vec2^T"""
    return _plus(input, outer(vec1, vec2), beta, alpha)


def addbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta input + alpha times the sum of batch1[z] batch2[z]"""
    return _plus(input, batch1.bmm(batch2).sum(0), beta, alpha)


def baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta input[z] + alpha batch1[z] batch2[z]"""
    return _plus(input, batch1.bmm(batch2), beta, alpha)


def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """x_i y_j"""
    if input.ndim != 1 or vec2.ndim != 1:
        raise ShapeError(f"outer takes two lines, given {list(input.shape)} and {list(vec2.shape)}")
    return input.unsqueeze(1) * vec2


def ger(input: Tensor, vec2: Tensor) -> Tensor:
    return outer(input, vec2)


def vdot(input: Tensor, other: Tensor) -> Tensor:
    return input.dot(other)


def inner(input: Tensor, other: Tensor) -> Tensor:
    """The sum of products along the last axes; of a number, the product."""
    if not input.ndim or not other.ndim:
        return input * other
    return tensordot(input, other, ([-1], [-1]))


def tensordot(a: Tensor, b: Tensor, dims: Any = 2) -> Tensor:
    """The sum of products over axes of both: the last of a with the first of b, or two lists of them."""
    a, b = as_tensor(a), as_tensor(b)
    if hasattr(dims, "__index__") or (isinstance(dims, Tensor) and dims.numel() == 1):
        count = int(dims)
        if not 0 <= count <= min(a.ndim, b.ndim):
            raise ShapeError(f"tensordot over {count} dims of shapes {list(a.shape)} and {list(b.shape)}")
        left, right = list(range(a.ndim - count, a.ndim)), list(range(count))
    else:
        pair = dims.tolist() if isinstance(dims, Tensor) else dims
        left, right = ([_one_dim(t.shape, d) for d in ([names] if hasattr(names, "__index__") else names)]
                       for t, names in zip((a, b), pair))
    for d, e in zip(left, right):                                # an axis of one goes with any other
        n = max(a.shape[d], b.shape[e])
        if 1 in (a.shape[d], b.shape[e]) and a.shape[d] != b.shape[e]:
            a = a.expand((*a.shape[:d], n, *a.shape[d + 1 :]))
            b = b.expand((*b.shape[:e], n, *b.shape[e + 1 :]))
    if [a.shape[d] for d in left] != [b.shape[d] for d in right]:
        raise ShapeError(f"tensordot: {[a.shape[d] for d in left]} of the first meet {[b.shape[d] for d in right]} of the second")
    rows, columns = [d for d in range(a.ndim) if d not in left], [d for d in range(b.ndim) if d not in right]
    k = math.prod(a.shape[d] for d in left)
    x = a.permute(rows + left).reshape((math.prod(a.shape[d] for d in rows), k))
    y = b.permute(right + columns).reshape((k, math.prod(b.shape[d] for d in columns)))
    return matmul(x, y).reshape(tuple(a.shape[d] for d in rows) + tuple(b.shape[d] for d in columns))


def kron(input: Tensor, other: Tensor) -> Tensor:
    """Each element of input times all of other, block by block."""
    n = max(input.ndim, other.ndim)
    a, b = ((1,) * (n - t.ndim) + t.shape for t in (input, other))
    x = input.reshape(tuple(k for m in a for k in (m, 1)))
    y = other.reshape(tuple(k for m in b for k in (1, m)))
    return (x * y).reshape(tuple(m * k for m, k in zip(a, b)))


def cross(input: Tensor, other: Tensor, *, dim: int = -1) -> Tensor:
    """The vector product along an axis of three."""
    x, y = input, other
    if x.ndim != y.ndim or x.shape[dim] != 3 or y.shape[dim] != 3:
        raise ShapeError(f"cross takes tensors with 3 along dim {dim}, given {list(x.shape)} and {list(y.shape)}")
    return x.roll(-1, dim) * y.roll(-2, dim) - x.roll(-2, dim) * y.roll(-1, dim)


def vecdot(x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
    return (x * y).sum(dim)


def multi_dot(tensors: Any) -> Tensor:
    """The product of a chain, from left to right."""
    parts = list(tensors)
    if len(parts) < 2:
        raise ValueError("multi_dot takes at least two tensors")
    y = parts[0]
    for t in parts[1:]:
        y = matmul(y, t)
    return y


def matrix_power(input: Tensor, n: int) -> Tensor:
    """The product of n copies of a square matrix, n >= 0."""
    if input.ndim < 2 or input.shape[-1] != input.shape[-2]:
        raise ShapeError(f"matrix_power takes square matrices, given {list(input.shape)}")
    if n < 0:
        raise ValueError(f"matrix_power takes n >= 0, got {n}: there is no inverse here")
    if not n:
        return as_tensor(np.eye(input.shape[-1], dtype=input.dtype)).expand(input.shape).clone()
    y: Any = None
    while n:
        if n & 1:
            y = input if y is None else matmul(y, input)
        n >>= 1
        input = matmul(input, input) if n else input
    return y


# einsum


def einsum(equation: Any, *operands: Any) -> Tensor:
    """Sums of products by Einstein's convention: einsum('bij,bjk->bik', x, y). Pairs are contracted from left to right."""
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if not isinstance(equation, str):
        raise TypeError("einsum takes its equation as a string, such as 'ij,jk->ik'")
    terms, result = _terms(equation, [t.ndim for t in operands])
    parts = [_diagonals(t, term) for t, term in zip(operands, terms)]
    extents: dict[Any, int] = {}
    for x, term in parts:
        for label, n in zip(term, x.shape):
            known = extents.setdefault(label, n)
            if n != known and 1 not in (n, known):
                raise ShapeError(f"einsum {equation!r}: {label!r} is {known} in one operand and {n} in another")
            extents[label] = max(n, known) if n != known else n
    x, term = parts[0]
    for i, (y, other) in enumerate(parts[1:], 1):
        later = set(result).union(*[t for _, t in parts[i + 1 :]])
        x, term = _contracted(x, term, y, other, later, extents)
    gone = tuple(i for i, label in enumerate(term) if label not in result)
    x = x.sum(gone) if gone else x
    term = [label for label in term if label in result]
    return x.permute([term.index(label) for label in result]) if term else x


def _terms(equation: str, ranks: list[int]) -> tuple[list[list], list]:
    """Labels of each operand's axes and of the result's; the axes of '...' are labelled by numbers from the right."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    texts = left.split(",")
    if len(texts) != len(ranks):
        raise ValueError(f"einsum {equation!r} names {len(texts)} operands, but {len(ranks)} are given")
    rest = [n - len(text.replace("...", "")) for text, n in zip(texts, ranks)]
    dots = max([n for n, text in zip(rest, texts) if "..." in text], default=0)

    def labels(text: str, extra: int) -> list:
        before, mark, after = text.partition("...")
        if any(not c.isalpha() for c in before + after):
            raise ValueError(f"einsum {equation!r}: subscripts are letters")
        return [*before, *range(dots - extra, dots), *after] if mark else list(before)

    for text, n, rank in zip(texts, rest, ranks):
        if n < 0 or (n and "..." not in text):
            raise ShapeError(f"einsum {equation!r}: {text!r} does not name the {rank} axes of its operand")
    terms = [labels(text, n) for text, n in zip(texts, rest)]
    if arrow:
        result = labels(right, dots)
    else:
        letters = [c for c in left if c.isalpha()]
        result = [*range(dots), *sorted(c for c in set(letters) if letters.count(c) == 1)]
    every = {label for term in terms for label in term}
    if len(set(result)) != len(result) or not set(result) <= every:
        raise ValueError(f"einsum {equation!r}: the result names each subscript once, and only those of operands")
    return terms, result


def _diagonals(x: Tensor, term: list) -> tuple[Tensor, list]:
    """One axis for each label, where a term repeats one."""
    for label in dict.fromkeys(term):
        while term.count(label) > 1:
            a = term.index(label)
            b = term.index(label, a + 1)
            if x.shape[a] != x.shape[b]:
                raise ShapeError(f"einsum: {label!r} is {x.shape[a]} and {x.shape[b]} in one operand")
            x = x.diagonal(0, a, b)
            term = [*term[:a], *term[a + 1 : b], *term[b + 1 :], label]
    return x, term


def _contracted(x: Tensor, a: list, y: Tensor, b: list, later: set, extents: dict) -> tuple[Tensor, list]:
    """Two operands as one, by a batched product; what nobody needs later is summed."""
    for label in [c for c in a if c not in b and c not in later]:
        x, a = x.sum(a.index(label)), [c for c in a if c != label]
    for label in [c for c in b if c not in a and c not in later]:
        y, b = y.sum(b.index(label)), [c for c in b if c != label]
    both = [c for c in a if c in b]
    batch, middle = [c for c in both if c in later], [c for c in both if c not in later]
    rows, columns = [c for c in a if c not in b], [c for c in b if c not in a]
    x = _spread(x, a, batch + rows + middle, both, extents)
    y = _spread(y, b, batch + middle + columns, both, extents)
    lead, m, k, n = ([extents[c] for c in group] for group in (batch, rows, middle, columns))
    z, p, q, r = (math.prod(group) for group in (lead, m, k, n))
    product = x.reshape((z, p, q)).bmm(y.reshape((z, q, r)))
    return product.reshape((*lead, *m, *n)), batch + rows + columns


def _spread(x: Tensor, term: list, order: list, shared: list, extents: dict) -> Tensor:
    """Axes in that order, those of one stretched where the other operand has more."""
    x = x.permute([term.index(c) for c in order]) if order else x
    shape = tuple(extents[c] if c in shared else n for c, n in zip(order, x.shape))
    return x.expand(shape) if shape != x.shape else x


# Norms


def vector_norm(x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """(sum |x|^ord)^(1/ord) over dim, all of it by default."""
    x = x if dtype is None else x.to(dtype)
    return x._float("vector_norm").norm(ord, dim, keepdim)


def matrix_norm(A: Tensor, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Of the matrices along two axes: 'fro', the root of the sum of squares; 1 and inf, the largest sum of a column or row."""
    A = A if dtype is None else A.to(dtype)
    if len(dim) != 2 or A.ndim < 2:
        raise ShapeError(f"matrix_norm takes two dims of a tensor that has them, given {dim} of {list(A.shape)}")
    a, b = (_one_dim(A.shape, d) for d in dim)
    if a == b:
        raise ShapeError(f"matrix_norm takes two different dims, given {dim}")
    if ord == "fro":
        return A._float("matrix_norm").norm(2, (a, b), keepdim)
    if ord in ("nuc", 2, -2):
        raise NotImplementedError(f"matrix_norm {ord!r} needs singular values, which are not here; "
                                  "choose 'fro', 1, -1, inf or -inf")
    if ord not in (1, -1, math.inf, -math.inf):
        raise ValueError(f"{ord!r} is not a norm of matrices; choose 'fro', 1, -1, inf or -inf")
    summed, chosen = (a, b) if abs(ord) == 1 else (b, a)
    sums = A._float("matrix_norm").abs().sum(summed, keepdim=True)
    y = sums.amax(chosen, keepdim=True) if ord > 0 else sums.amin(chosen, keepdim=True)
    return y if keepdim else y.squeeze((a, b))


def norm(A: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """torch.linalg.norm: of vectors, or of matrices where dim names two axes or ord is one for them."""
    if ord is None or (dim is not None and (hasattr(dim, "__index__") or len(dim) == 1)):
        return vector_norm(A, 2 if ord is None else ord, dim, keepdim, dtype=dtype)
    if dim is None and A.ndim == 1 and ord not in ("fro", "nuc"):
        return vector_norm(A, ord, None, keepdim, dtype=dtype)
    if dim is None and A.ndim != 2:
        raise ShapeError(f"norm with ord={ord!r} takes a tensor of 1 or 2 axes, or dim; this one has {A.ndim}")
    return matrix_norm(A, ord, (0, 1) if dim is None else dim, keepdim, dtype=dtype)


METHODS = ("addbmm", "addmm", "addmv", "addr", "baddbmm", "ger", "inner", "kron", "matrix_power", "outer", "vdot")
FUNCTIONS = ("einsum", "tensordot")
IN_PLACE = ("addbmm", "addmm", "addmv", "addr", "baddbmm")

__all__ = ["cross", "matrix_norm", "matrix_power", "multi_dot", "norm", "vecdot", "vector_norm"]
