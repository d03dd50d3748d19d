# SPDX-License-Identifier: BSD-3-Clause
"""Products, inverses, decompositions and norms of tensors, under the names of torch and torch.linalg. Products come down to
matmul and bmm, the rest to NumPy's linalg, on either backend."""

import math
from typing import Any, NamedTuple

import numpy as np

from . import ops
from .graph import is_grad_enabled
from .kernels import LinAlgError, ShapeError
from .tensor import Tensor, _constant, _one_dim, as_tensor, cat, matmul, where, wrap

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
    """The product of n copies of a square matrix; of -n copies of its inverse where n < 0."""
    if input.ndim < 2 or input.shape[-1] != input.shape[-2]:
        raise ShapeError(f"matrix_power takes square matrices, given {list(input.shape)}")
    if n < 0:
        return matrix_power(inv(input), -n)
    if not n:
        return as_tensor(np.eye(input.shape[-1], dtype=input.dtype)).expand(input.shape).clone()
    y: Any = None
    while n:
        if n & 1:
            y = input if y is None else matmul(y, input)
        n >>= 1
        input = matmul(input, input) if n else input
    return y


# Inverses and decompositions, of the last two axes [..., m, n]


class SlogdetResult(NamedTuple):
    sign: Any
    logabsdet: Any


class EighResult(NamedTuple):
    eigenvalues: Any
    eigenvectors: Any


class QRResult(NamedTuple):
    Q: Any
    R: Any


class SVDResult(NamedTuple):
    U: Any
    S: Any
    Vh: Any


def _as_rows(name: str, A: Tensor, square: bool = False) -> tuple[Tensor, tuple[int, ...]]:
    """A as [z, m, n], and the axes before these. Raises ShapeError, DtypeError."""
    if A.ndim < 2 or (square and A.shape[-1] != A.shape[-2]):
        raise ShapeError(f"{name} takes {'square ' if square else ''}matrices, given {list(A.shape)}")
    lead = A.shape[:-2]
    return A._float(name).reshape((math.prod(lead), *A.shape[-2:])), lead


def inv(A: Tensor) -> Tensor:
    """The inverse of square matrices. Raises LinAlgError, ShapeError."""
    rows, _ = _as_rows("inv", A, True)
    return rows._op("inv").reshape(A.shape)


def inverse(input: Tensor) -> Tensor:
    return inv(input)


def det(A: Tensor) -> Tensor:
    """The determinants of square matrices. Their gradient takes an inverse: at a singular one LinAlgError."""
    rows, lead = _as_rows("det", A, True)
    return rows._op("det").reshape(lead)


def slogdet(A: Tensor) -> SlogdetResult:
    """The sign of the determinant and ln |det A|: neither overflows."""
    rows, lead = _as_rows("slogdet", A, True)
    sign, rest = (ops.empty(rows.shape[:1], rows.dtype) for _ in range(2))
    ops.run("slogdet", (rows.array, sign, rest))
    return SlogdetResult(wrap(sign).reshape(lead), rows._op("logabsdet").reshape(lead))


def logdet(input: Tensor) -> Tensor:
    """ln det A, NaN where that is negative."""
    sign, y = slogdet(input)
    return y.masked_fill(sign < 0, math.nan)


def solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    """X with A X = B, or X A = B if not left; B [..., n, k], or [..., n] for A [..., n, n]. Raises LinAlgError, ShapeError."""
    if not left:
        return solve(A.mT, B.mT).mT
    line = B.ndim == 1 or (B.ndim == A.ndim - 1 and B.shape == A.shape[:-1])
    b = B.unsqueeze(-1) if line else B
    if A.ndim < 2 or b.ndim < 2 or A.shape[-1] != b.shape[-2]:
        raise ShapeError(f"solve takes A [..., n, n] and B [..., n, k] or [..., n], given {list(A.shape)} and {list(B.shape)}")
    lead = ops.broadcast_shape(A.shape[:-2], b.shape[:-2])
    a, _ = _as_rows("solve", A.expand((*lead, *A.shape[-2:])), True)
    rows, _ = _as_rows("solve", b.expand((*lead, *b.shape[-2:])))
    x = a._op("solve", rows).reshape((*lead, *b.shape[-2:]))
    return x.squeeze(-1) if line else x


def _mirrored(rows: Tensor, upper: bool) -> Tensor:
    """The symmetric matrices that one triangle of [z, n, n] stands for; the gradient is that of symmetric ones."""
    x = rows.detach()
    part = x.mT if upper else x
    below = wrap(np.tri(rows.shape[1], k=-1, dtype=rows.dtype))
    return rows + (where(below != 0, part, part.mT) - x)


def cholesky(A: Tensor, *, upper: bool = False) -> Tensor:
    """L, lower triangular, with L L^T = A; with upper its transpose. Of A one triangle is read. Raises LinAlgError."""
    rows, _ = _as_rows("cholesky", A, True)
    lower = _mirrored(rows, upper)._op("cholesky").reshape(A.shape)
    return lower.mT if upper else lower


def eigh(A: Tensor, UPLO: str = "L") -> EighResult:
    """Eigenvalues [..., n], ascending, and orthonormal eigenvectors [..., n, n], its columns, of symmetric matrices.

    UPLO: the triangle of A that is read. The largest element of an eigenvector is positive. Raises LinAlgError.
    """
    if UPLO not in ("L", "U"):
        raise ValueError(f"UPLO is 'L' or 'U', not {UPLO!r}")
    rows, lead = _as_rows("eigh", A, True)
    y = _mirrored(rows, UPLO == "U")._op("eigh")
    return EighResult(y[:, :, 0].reshape((*lead, A.shape[-1])), y[:, :, 1:].reshape(A.shape))


def eigvalsh(A: Tensor, UPLO: str = "L") -> Tensor:
    return eigh(A, UPLO).eigenvalues


def _complement(q: Tensor) -> Tensor:
    """Columns that make q [z, m, k] a basis; they have no gradient."""
    z, m, k = q.shape
    full, rest = ops.empty((z, m, m), q.dtype), ops.empty((z, m, k), q.dtype)
    ops.run("qr", (q.array, full, rest))
    return wrap(np.ascontiguousarray(full[:, :, k:])) if m > k else q[:, :, k:]


def svd(A: Tensor, full_matrices: bool = True, *, driver: str | None = None) -> SVDResult:
    """A = U diag(S) Vh, S descending; U [..., m, k] and Vh [..., k, n] for k = min(m, n), or with full_matrices square.

    The largest element of each of the first k columns of U is positive. What full_matrices adds has no gradient.
    """
    rows, lead = _as_rows("svd", A)
    m, n = rows.shape[1:]
    y = rows._op("svd")
    u, s, vh = y[:, :, :m].mT, y[:, :, m], y[:, :, m + 1 :]
    if full_matrices and m > n:
        u = cat([u, _complement(u)], 2)
    if full_matrices and n > m:
        vh = cat([vh, _complement(vh.mT).mT], 1)
    return SVDResult(*[part.reshape((*lead, *part.shape[1:])) for part in (u, s, vh)])


def svdvals(A: Tensor, *, driver: str | None = None) -> Tensor:
    """The singular values, descending."""
    return svd(A, False).S


def qr(A: Tensor, mode: str = "reduced") -> QRResult:
    """A = Q R, Q [..., m, k] orthonormal, R [..., k, n] upper triangular, k = min(m, n); mode 'complete': k = m, which has no
    gradient where m > n; 'r': R alone, Q being empty."""
    if mode not in ("reduced", "complete", "r"):
        raise ValueError(f"{mode!r} is no mode of qr; choose from reduced, complete, r")
    rows, lead = _as_rows("qr", A)
    z, m, n = rows.shape
    if mode == "complete" and m > n:
        if A.requires_grad and is_grad_enabled():
            raise RuntimeError("qr with mode='complete' has no gradient for a matrix higher than wide; use mode='reduced'")
        q, r = (wrap(ops.empty(shape, rows.dtype)) for shape in ((z, m, m), (z, m, n)))
        ops.run("qr", (rows.array, q.array, r.array))
    else:
        y = rows[:, :, :m]._op("qr")                             # of a wide one the square part, and the rest by a product
        q, r = y[:, :, :m].mT, y[:, :, m:]
        if n > m:
            r = cat([r, q.mT @ rows[:, :, m:]], 2)
    r = r.reshape((*lead, *r.shape[1:]))
    return QRResult(rows._full((0,), 0.0) if mode == "r" else q.reshape((*lead, *q.shape[1:])), r)


def pinv(A: Tensor, rtol: float | None = None, *, atol: float | None = None, hermitian: bool = False) -> Tensor:
    """The pseudoinverse [..., n, m]. Singular values up to max(atol, rtol times the largest) count as 0; rtol is by default
    max(m, n) times the dtype's eps, 0 where there is an atol. hermitian: of A, symmetric, the lower triangle is read."""
    rows, lead = _as_rows("pinv", A, hermitian)
    rows = _mirrored(rows, False) if hermitian else rows
    m, n = rows.shape[1:]
    if rtol is None:
        rtol = 0.0 if atol else max(m, n) * float(np.finfo(A.dtype).eps)
    return rows._op("pinv", attrs=(float(rtol), float(atol or 0.0))).reshape((*lead, n, m))


def pinverse(input: Tensor, rcond: float = 1e-15) -> Tensor:
    return pinv(input, rcond)


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
    """Of the matrices along two axes: 'fro', the root of the sum of squares; 1 and inf, the largest sum of a column or row; 2, the
    largest singular value; 'nuc', their sum. -1, -inf and -2: the smallest."""
    A = A if dtype is None else A.to(dtype)
    if len(dim) != 2 or A.ndim < 2:
        raise ShapeError(f"matrix_norm takes two dims of a tensor that has them, given {dim} of {list(A.shape)}")
    a, b = (_one_dim(A.shape, d) for d in dim)
    if a == b:
        raise ShapeError(f"matrix_norm takes two different dims, given {dim}")
    if ord == "fro":
        return A._float("matrix_norm").norm(2, (a, b), keepdim)
    if ord in ("nuc", 2, -2):
        s = svdvals(A._float("matrix_norm").permute([d for d in range(A.ndim) if d not in (a, b)] + [a, b]))
        y = s.sum(-1) if ord == "nuc" else s.amax(-1) if ord == 2 else s.amin(-1)
        return y.reshape(ops.kept_shape(A.shape, (a, b), True)) if keepdim else y
    if ord not in (1, -1, math.inf, -math.inf):
        raise ValueError(f"{ord!r} is not a norm of matrices; choose 'fro', 'nuc', 1, -1, 2, -2, inf or -inf")
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


METHODS = ("addbmm", "addmm", "addmv", "addr", "baddbmm", "cholesky", "det", "ger", "inner", "inverse", "kron", "logdet",
           "matrix_power", "outer", "pinverse", "slogdet", "vdot")
FUNCTIONS = ("einsum", "tensordot")
IN_PLACE = ("addbmm", "addmm", "addmv", "addr", "baddbmm")

__all__ = ["LinAlgError", "cholesky", "cross", "det", "eigh", "eigvalsh", "inv", "matrix_norm", "matrix_power", "multi_dot", "norm",
           "pinv", "qr", "slogdet", "solve", "svd", "svdvals", "vecdot", "vector_norm"]
