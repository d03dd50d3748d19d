# SPDX-License-Identifier: BSD-3-Clause
"""Layers with parameters, and layers that only shape their input."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..kernels import ShapeError
from ..tensor import Tensor, _device, _one_dim, cat, empty
from . import functional as F
from . import init
from .containers import ModuleList, Sequential
from .module import Module, Parameter


class Linear(Module):
    """y = x W^T + b for x [..., in_features]; weight [out_features, in_features], bias [out_features] or None.

    Both start uniform in +-1/sqrt(in_features), as torch's do.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device: Any = None,
                 dtype: Any = None) -> None:
        super().__init__()
        _device(device)
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(empty(out_features, in_features, dtype=dtype))
        self.register_parameter("bias", Parameter(empty(out_features, dtype=dtype)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Dense(Linear):
    """Linear and an activation by name in one kernel: Dense(64, 128, "relu"), Dense(64, 128, "leaky_relu", negative_slope=0.1).

    Raises ValueError for an activation that is not in the table, TypeError for a parameter that it does not have.
    """

    def __init__(self, in_features: int, out_features: int, activation: str | None = None, bias: bool = True,
                 device: Any = None, dtype: Any = None, **params: float) -> None:
        self.activation = activation or "identity"
        if self.activation not in F.activation_names():
            raise ValueError(f"{activation!r} is not an activation; choose from {', '.join(F.activation_names())}")
        known: dict[str, float | None] = dict(F.OPS[self.activation].params)
        if unknown := set(params) - set(known):
            raise TypeError(f"{self.activation} takes {sorted(known) or 'no parameters'}, not {sorted(unknown)}")
        given = known | params
        if missing := [name for name, value in given.items() if value is None]:
            raise TypeError(f"{self.activation} also needs {' and '.join(missing)}")
        self.params = tuple(float(value) for value in given.values() if value is not None)
        super().__init__(in_features, out_features, bias, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        return F.dense(input, self.weight, self.bias, self.activation, *self.params)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation!r}"


class Dropout(Module):
    """In training, zeroes each element with probability p and divides the others by 1 - p; otherwise the identity."""

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"dropout takes a probability between 0 and 1, got {p}")
        self.p, self.inplace = p, inplace

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training, self.inplace)

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"


class Dropout1d(Dropout):
    """Dropout of whole channels of [N, C, L] or [C, L]."""

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout1d(input, self.p, self.training, self.inplace)


class AlphaDropout(Dropout):
    """Dropout that keeps mean 0 and variance 1, for networks of SELU."""

    def forward(self, input: Tensor) -> Tensor:
        return F.alpha_dropout(input, self.p, self.training, self.inplace)


class FeatureAlphaDropout(Dropout):
    """AlphaDropout of whole channels of [N, C, ...]."""

    def forward(self, input: Tensor) -> Tensor:
        return F.feature_alpha_dropout(input, self.p, self.training, self.inplace)


class Bilinear(Module):
    """y_o = x1 W_o x2 + b_o; weight [out_features, in1_features, in2_features]. Starts uniform in +-1/sqrt(in1_features)."""

    def __init__(self, in1_features: int, in2_features: int, out_features: int, bias: bool = True, device: Any = None,
                 dtype: Any = None) -> None:
        super().__init__()
        _device(device)
        if in1_features <= 0:
            raise ValueError(f"in1_features must be positive, got {in1_features}")
        self.in1_features, self.in2_features, self.out_features = in1_features, in2_features, out_features
        self.weight = Parameter(empty(out_features, in1_features, in2_features, dtype=dtype))
        self.register_parameter("bias", Parameter(empty(out_features, dtype=dtype)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.in1_features)
        for p in self.parameters():
            init.uniform_(p, -bound, bound)

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        return F.bilinear(input1, input2, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (f"in1_features={self.in1_features}, in2_features={self.in2_features}, out_features={self.out_features}, "
                f"bias={self.bias is not None}")


class Embedding(Module):
    """A table of num_embeddings rows, looked up by number; see functional.embedding. Rows start as N(0, 1), the padding as 0."""

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None,
                 max_norm: float | None = None, norm_type: float = 2.0, scale_grad_by_freq: bool = False,
                 sparse: bool = False, _weight: Any = None, _freeze: bool = False, device: Any = None,
                 dtype: Any = None) -> None:
        super().__init__()
        _device(device)
        if sparse:
            raise ValueError("Embedding gives dense gradients only: use sparse=False, the numbers are the same")
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(f"padding_idx must be within the {num_embeddings} rows, got {padding_idx}")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = None if padding_idx is None else padding_idx % num_embeddings
        self.max_norm, self.norm_type = max_norm, norm_type
        self.scale_grad_by_freq, self.sparse = scale_grad_by_freq, sparse
        if _weight is None:
            self.weight = Parameter(empty(num_embeddings, embedding_dim, dtype=dtype), requires_grad=not _freeze)
            self.reset_parameters()
        elif tuple(_weight.shape) != (num_embeddings, embedding_dim):
            raise ShapeError(f"a weight of {list(_weight.shape)} is no table of {num_embeddings} rows of {embedding_dim}")
        else:
            self.weight = Parameter(_weight, requires_grad=not _freeze)

    def reset_parameters(self) -> None:
        init.normal_(self.weight)
        if self.padding_idx is not None:
            init.zeros_(self.weight.detach()[self.padding_idx])

    @classmethod
    def from_pretrained(cls, embeddings: Tensor, freeze: bool = True, padding_idx: int | None = None,
                        max_norm: float | None = None, norm_type: float = 2.0, scale_grad_by_freq: bool = False,
                        sparse: bool = False) -> "Embedding":
        """The table of embeddings [rows, width], trained only if not freeze."""
        if embeddings.ndim != 2:
            raise ShapeError(f"from_pretrained takes a tensor of 2 axes, rows and width, given {list(embeddings.shape)}")
        rows, width = embeddings.shape
        return cls(rows, width, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, embeddings, freeze)

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self.weight, self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq)

    def extra_repr(self) -> str:
        words = [f"{self.num_embeddings}, {self.embedding_dim}"]
        for name, default in (("padding_idx", None), ("max_norm", None), ("norm_type", 2.0), ("scale_grad_by_freq", False)):
            if getattr(self, name) != default:
                words.append(f"{name}={getattr(self, name)}")
        return ", ".join(words)


class CosineSimilarity(Module):
    """The cosine of the angle between x1 and x2 along dim."""

    def __init__(self, dim: int = 1, eps: float = 1e-8) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return F.cosine_similarity(x1, x2, self.dim, self.eps)


class PairwiseDistance(Module):
    """The norm of x1 - x2 along the last axis."""

    def __init__(self, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> None:
        super().__init__()
        self.norm, self.eps, self.keepdim = p, eps, keepdim

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return F.pairwise_distance(x1, x2, self.norm, self.eps, self.keepdim)


class Flatten(Module):
    """Axes start_dim to end_dim as one."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, input: Tensor) -> Tensor:
        return input.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """One axis as several: Unflatten(1, (2, 3)); one of the extents may be -1."""

    def __init__(self, dim: int, unflattened_size: Any) -> None:
        super().__init__()
        if not isinstance(dim, int):
            raise TypeError(f"Unflatten takes the axis as an integer, got {dim!r}: axes have no names here")
        if not isinstance(unflattened_size, (tuple, list)) or not all(isinstance(n, int) for n in unflattened_size):
            raise TypeError(f"Unflatten takes a tuple of integers as the size, got {unflattened_size!r}")
        self.dim, self.unflattened_size = dim, unflattened_size

    def forward(self, input: Tensor) -> Tensor:
        at = _one_dim(input.shape, self.dim)
        size, extent = tuple(self.unflattened_size), input.shape[at]
        known = math.prod(n for n in size if n >= 0)
        if size.count(-1) > 1 or (known != extent and not (-1 in size and known and extent % known == 0)):
            raise ShapeError(f"Unflatten cannot make {list(size)} of axis {self.dim} of {list(input.shape)}")
        size = tuple(n if n >= 0 else extent // known for n in size)
        return input.reshape(input.shape[:at] + size + input.shape[at + 1 :])

    def extra_repr(self) -> str:
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"


class Softmax(Module):
    """e^x / sum e^x along dim."""

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        return F.softmax(input, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class LogSoftmax(Softmax):
    """x - ln sum e^x along dim."""

    def forward(self, input: Tensor) -> Tensor:
        return F.log_softmax(input, self.dim)


class NonDynamicallyQuantizableLinear(Linear):
    """Linear, by the name that torch prints for the last layer of an attention."""


class MultiheadAttention(Module):
    """Attention of num_heads heads side by side, each of embed_dim / num_heads features. Vaswani et al. 2017.

    query [L, N, embed_dim], key [S, N, kdim], value [S, N, vdim]; with batch_first N comes first; all also without N. Returns
    the output, shaped as query, and the weights [N, L, S], of each head [N, heads, L, S] if not average_attn_weights, None if
    not need_weights. key_padding_mask [N, S] and attn_mask [L, S] or [N heads, L, S]: booleans, true where not to look, or
    numbers to add. is_causal is a hint that attn_mask is causal. add_bias_kv and add_zero_attn each add one key and value.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True, add_bias_kv: bool = False,
                 add_zero_attn: bool = False, kdim: int | None = None, vdim: int | None = None, batch_first: bool = False,
                 device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        _device(device)
        if embed_dim <= 0 or num_heads <= 0:
            raise ValueError(f"embed_dim and num_heads must be positive, got {embed_dim} and {num_heads}")
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads, got {embed_dim} and {num_heads}")
        self.embed_dim, self.num_heads, self.dropout, self.batch_first = embed_dim, num_heads, dropout, batch_first
        self.kdim, self.vdim = kdim if kdim is not None else embed_dim, vdim if vdim is not None else embed_dim
        self.head_dim, self.add_zero_attn = embed_dim // num_heads, add_zero_attn
        self._qkv_same_embed_dim = self.kdim == self.vdim == embed_dim
        widths = {"q_proj_weight": embed_dim, "k_proj_weight": self.kdim, "v_proj_weight": self.vdim}
        shapes = {name: None if self._qkv_same_embed_dim else (embed_dim, width) for name, width in widths.items()}
        shapes["in_proj_weight"] = (3 * embed_dim, embed_dim) if self._qkv_same_embed_dim else None
        for name, shape in shapes.items():
            self.register_parameter(name, Parameter(empty(*shape, dtype=dtype)) if shape else None)
        self.register_parameter("in_proj_bias", Parameter(empty(3 * embed_dim, dtype=dtype)) if bias else None)
        self.out_proj = NonDynamicallyQuantizableLinear(embed_dim, embed_dim, bias, device, dtype)
        for name in ("bias_k", "bias_v"):
            self.register_parameter(name, Parameter(empty(1, 1, embed_dim, dtype=dtype)) if add_bias_kv else None)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for weight in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            if weight is not None:
                init.xavier_uniform_(weight)
        if self.in_proj_bias is not None:
            init.zeros_(self.in_proj_bias)
            init.zeros_(self.out_proj.bias)
        for bias in (self.bias_k, self.bias_v):
            if bias is not None:
                init.xavier_normal_(bias)

    def _projected(self, *given: Tensor) -> list[Tensor]:
        """Queries, keys and values [N, L, embed_dim]."""
        if self._qkv_same_embed_dim and given[0] is given[1] is given[2]:
            return list(F.linear(given[0], self.in_proj_weight, self.in_proj_bias).chunk(3, -1))
        weights = (self.in_proj_weight.chunk(3) if self._qkv_same_embed_dim
                   else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight))
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [F.linear(x, w, b) for x, w, b in zip(given, weights, biases)]

    def _mask(self, key_padding_mask: Tensor | None, attn_mask: Tensor | None, shape: tuple[int, int, int], q: Tensor) -> Any:
        """What to add to the scores [N, heads, L, S], or None."""
        n, lines, columns = shape
        total: Any = None
        of_lines: dict[tuple[int, ...], tuple[int, ...]] = {(lines, columns): (1, 1, lines, columns)}
        of_lines[n * self.num_heads, lines, columns] = (n, self.num_heads, lines, columns)
        of_keys: dict[tuple[int, ...], tuple[int, ...]] = {(n, columns): (n, 1, 1, columns)}
        for name, mask, fits in (("attn_mask", attn_mask, of_lines), ("key_padding_mask", key_padding_mask, of_keys)):
            if mask is None:
                continue
            if mask.shape not in fits:
                raise ShapeError(f"MultiheadAttention takes {name} of shape {' or '.join(str(list(s)) for s in fits)}, "
                                 f"given {list(mask.shape)}")
            if mask.dtype == np.bool_:
                mask = q._full(mask.shape, 0.0).masked_fill(mask, -math.inf)
            mask = mask.reshape(fits[mask.shape])
            total = mask if total is None else total + mask
        return total

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
                need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
                is_causal: bool = False) -> tuple[Tensor, Tensor | None]:
        if is_causal and attn_mask is None:
            raise RuntimeError("MultiheadAttention takes is_causal as a hint about attn_mask, which is not given")
        unbatched = query.ndim == 2
        if query.ndim not in (2, 3) or not query.ndim == key.ndim == value.ndim:
            raise ShapeError("MultiheadAttention takes query, key and value of 3 axes, or all of 2 without a batch, given "
                             f"{list(query.shape)}, {list(key.shape)} and {list(value.shape)}")
        known: dict[int, Tensor] = {}                            # one tensor given thrice stays one
        for x in (query, key, value):
            known.setdefault(id(x), x.unsqueeze(0) if unbatched else x if self.batch_first else x.transpose(0, 1))
        given = [known[id(x)] for x in (query, key, value)]
        (n, lines, _), columns = given[0].shape, given[1].shape[1]
        if given[2].shape[:2] != (n, columns) or len(given[1]) != n or given[0].shape[2] != self.embed_dim:
            raise ShapeError(f"MultiheadAttention of {self.embed_dim} features: query, key and value of shapes "
                             f"{list(query.shape)}, {list(key.shape)} and {list(value.shape)} do not fit each other")
        q, k, v = self._projected(*given)
        if unbatched and key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        mask = self._mask(key_padding_mask, attn_mask, (n, lines, columns), q)
        more = [[x, None if bias is None else bias.expand((n, 1, self.embed_dim)),
                 x._full((n, 1, self.embed_dim), 0.0) if self.add_zero_attn else None]
                for x, bias in ((k, self.bias_k), (v, self.bias_v))]
        k, v = (cat([x for x in some if x is not None], 1) for some in more)
        if mask is not None and k.shape[1] > columns:
            mask = cat([mask, mask._full((*mask.shape[:-1], k.shape[1] - columns), 0.0)], -1)
        q, k, v = (x.reshape((n, x.shape[1], self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        p = self.dropout if self.training else 0.0
        weights: Any = None
        if need_weights:
            scores = (q * (1 / self.head_dim) ** 0.5) @ k.mT
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), p)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, p)
        y = self.out_proj(y.transpose(1, 2).reshape((n, lines, self.embed_dim)))
        if unbatched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return y if self.batch_first else y.transpose(0, 1), weights


class ASMoutput(NamedTuple):
    """What AdaptiveLogSoftmaxWithLoss returns."""

    output: Any
    loss: Any


class AdaptiveLogSoftmaxWithLoss(Module):
    """log_softmax over many classes, the rarer ones in clusters whose layers are narrower. Grave et al. 2017.

    Classes come in order of frequency; those below cutoffs[0] are in the head, each later cluster is one more class of it, with
    in_features / div_value^i features. Input [N, in_features] and class numbers [N], or both without N; gives the log-probability
    of each target and minus their mean. What runs depends on the targets, so that it is not recorded by compile.
    """

    def __init__(self, in_features: int, n_classes: int, cutoffs: Sequence[int], div_value: float = 4.0,
                 head_bias: bool = False, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        ends = list(cutoffs)
        if not ends or ends != sorted(set(ends)) or ends[0] <= 0 or ends[-1] > n_classes - 1 or any(int(c) != c for c in ends):
            raise ValueError(f"cutoffs must be integers in ascending order between 1 and {n_classes - 1}, got {ends}")
        self.in_features, self.n_classes, self.cutoffs = in_features, n_classes, [*ends, n_classes]
        self.div_value, self.head_bias = div_value, head_bias
        self.shortlist_size, self.n_clusters = ends[0], len(ends)
        self.head_size = self.shortlist_size + self.n_clusters
        self.head = Linear(in_features, self.head_size, head_bias, device, dtype)
        self.tail = ModuleList()
        for i, (start, end) in enumerate(zip(self.cutoffs, self.cutoffs[1:]), 1):
            width = int(in_features // div_value**i)
            self.tail.append(Sequential(Linear(in_features, width, False, device, dtype),
                                        Linear(width, end - start, False, device, dtype)))

    def reset_parameters(self) -> None:
        for layer in (self.head, *[part for pair in self.tail for part in pair]):
            layer.reset_parameters()

    def forward(self, input_: Tensor, target_: Tensor) -> ASMoutput:
        if target_.ndim > 1 or input_.ndim != target_.ndim + 1 or input_.shape[:-1] != target_.shape:
            raise ShapeError("AdaptiveLogSoftmaxWithLoss takes input [N, features] and target [N], or both without N, given "
                             f"{list(input_.shape)} and {list(target_.shape)}")
        x, target = (input_, target_) if target_.ndim else (input_.unsqueeze(0), target_.unsqueeze(0))
        if len(target) and not 0 <= int(target.min()) <= int(target.max()) < self.n_classes:
            raise ShapeError(f"targets must be class numbers from 0 to {self.n_classes - 1}, "
                             f"given {int(target.min())} to {int(target.max())}")
        output, column = x.new_zeros(len(target)), target
        for i, (start, end) in enumerate(zip(self.cutoffs, self.cutoffs[1:])):
            mask = (target >= start) & (target < end)
            rows = mask.nonzero().reshape(-1)
            if len(rows):
                logp = self.tail[i](x[rows]).log_softmax(1).gather(1, (target[rows] - start).unsqueeze(1)).squeeze(1)
                output = output.index_copy(0, rows, logp)
                column = column.masked_fill(mask, self.shortlist_size + i)
        output = output + self.head(x).log_softmax(1).gather(1, column.unsqueeze(1)).squeeze(1)
        return ASMoutput(output if target_.ndim else output.squeeze(0), (-output).mean())

    def log_prob(self, input: Tensor) -> Tensor:
        """The log-probabilities of all classes [N, n_classes]."""
        head = self.head(input).log_softmax(1)
        tails = [self.tail[i](input).log_softmax(1) + head[:, self.shortlist_size + i].unsqueeze(1) for i in range(self.n_clusters)]
        return cat([head[:, : self.shortlist_size], *tails], 1)

    def predict(self, input: Tensor) -> Tensor:
        """The most probable class of each row."""
        return self.log_prob(input).argmax(1)
