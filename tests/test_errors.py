# SPDX-License-Identifier: BSD-3-Clause
"""Bad input: a named exception that says what was given and what fits, alike on all backends; inputs stay untouched."""
from types import SimpleNamespace

import numpy as np
import pytest
from cases import BACKENDS

import pyneuro as pn
import pyneuro.nn.functional as F
from pyneuro import nn, optim

SHAPE = (ValueError, RuntimeError)                   # NumPy's users catch the one, torch's the other: it is both
DTYPE = (TypeError, ValueError, RuntimeError)
DEVICE = (ValueError, RuntimeError)


def inputs():
    """What the calls below are given, fresh for each."""
    rng = np.random.default_rng(0)
    g = SimpleNamespace(
        x=rng.normal(size=(3, 4)).astype(np.float32), y=rng.normal(size=(3, 5)).astype(np.float32),
        w=rng.normal(size=(5, 4)).astype(np.float32), b=np.zeros(5, np.float32), d=rng.normal(size=(3, 4)),
        labels=np.array([0, 3, 1]), high=np.array([0, 4, 1]), low=np.array([0, -1, 1]),
        nan=np.array([0.0, np.nan, 1.0], np.float32),
        ints=np.arange(12).reshape(3, 4), mask=np.array([True, False, True]), out=np.zeros((3, 4), np.float32),
        locked=np.zeros((3, 4), np.float32), one=np.ones(1, np.float32), hyper=np.zeros(7))
    g.locked.flags.writeable = False
    g.t = SimpleNamespace(**{k: pn.from_numpy(v) for k, v in vars(g).items()})
    return g


def off_by_a_byte(x):
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:]
    moved = np.frombuffer(raw.data, x.dtype).reshape(x.shape)
    assert not moved.flags.aligned
    return moved


def kernel(name, *bufs, attrs=()):
    pn.kernels.run(name, *bufs, attrs=attrs)


ROWS = [  # call, exceptions, words of the message
    # Shapes
    ("add",              lambda g: g.t.x + g.t.y, SHAPE, r"\[3, 4\] and \[3, 5\].*broadcast"),
    ("matmul",           lambda g: g.t.x @ g.t.y, SHAPE, r"\[3, 4\].*\[3, 5\].*4 columns.*3 rows"),
    ("matmul 0-d",       lambda g: g.t.x @ pn.tensor(1.0), SHAPE, "at least one axis"),
    ("linear",           lambda g: F.linear(g.t.x, g.t.y), SHAPE, r"\[3, 4\], \[3, 5\]"),
    ("linear bias",      lambda g: F.linear(g.t.x, g.t.w, g.t.one), SHAPE, r"bias \[out\].*\[1\]"),
    ("reshape",          lambda g: g.t.x.reshape(5, 3), SHAPE, r"\[5, 3\].*12 elements of \[3, 4\]"),
    ("reshape twice -1", lambda g: g.t.x.reshape(-1, -1), SHAPE, r"\[-1, -1\]"),
    ("view",             lambda g: g.t.x.t().view(12), SHAPE[1], "strides.*reshape"),
    ("expand",           lambda g: g.t.x.expand(3, 5), SHAPE, r"\[3, 4\].*\[3, 5\]"),
    ("cat",              lambda g: pn.cat([g.t.x, g.t.y]), SHAPE, r"\[3, 4\], \[3, 5\]"),
    ("cat nothing",      lambda g: pn.cat([]), ValueError, "at least one"),
    ("stack",            lambda g: pn.stack([g.t.x, g.t.y]), SHAPE, r"\[3, 4\], \[3, 5\]"),
    ("permute",          lambda g: g.t.x.permute(0, 0), SHAPE, "each of the 2 axes once"),
    ("split",            lambda g: g.t.x.split([1, 1], 0), SHAPE, r"\[1, 1\].*3"),
    ("gather",           lambda g: g.t.x.gather(1, pn.zeros(5, 1, dtype="int64")), SHAPE, r"\[5, 1\].*\[3, 4\]"),
    ("setitem",          lambda g: g.t.out.__setitem__(0, g.t.y), SHAPE, r"\[3, 5\].*\[4\]"),
    ("in place",         lambda g: g.t.one.add_(g.t.x), SHAPE, r"\[1\].*\[3, 4\]"),
    ("negative extent",  lambda g: pn.zeros(2, -1), SHAPE, r"\[2, -1\].*negative"),
    ("huge extent",      lambda g: pn.zeros(2**62), SHAPE, "4611686018427387904"),
    ("huge product",     lambda g: pn.zeros(2**31, 2**31, 8), SHAPE, "2147483648"),
    ("huge beside zero", lambda g: pn.zeros(2**40, 2**40, 0), SHAPE, "1099511627776"),
    ("huge expand",      lambda g: g.t.one.expand(2**62, 4), SHAPE, "4611686018427387904"),
    ("more than memory", lambda g: pn.empty(2**40, 2**10), MemoryError, "allocate"),
    ("ragged",           lambda g: pn.tensor([[1.0, 2.0], [3.0]]), SHAPE, "ragged"),
    ("item",             lambda g: g.t.x.item(), RuntimeError, r"one element.*\[3, 4\]"),
    ("bool",             lambda g: bool(g.t.x), RuntimeError, r"\[3, 4\].*ambiguous"),
    ("len 0-d",          lambda g: len(pn.tensor(1)), TypeError, "0-d"),
    ("iterate 0-d",      lambda g: list(pn.tensor(1)), TypeError, "0-d"),
    ("state_dict",       lambda g: nn.Linear(4, 5).load_state_dict({"weight": g.t.y, "bias": g.t.b}),
                         SHAPE, r"weight: .*\[3, 5\].*\[5, 4\]"),
    ("grad",             lambda g: setattr(g.t.x, "grad", g.t.y), SHAPE, r"\[3, 5\].*\[3, 4\]"),
    # Axes and indices
    ("dim",              lambda g: g.t.x.sum(2), IndexError, "dim 2.*2 axes.*-2 to 1"),
    ("dim of softmax",   lambda g: g.t.x.softmax(-3), IndexError, "dim -3.*2 axes"),
    ("dim twice",        lambda g: g.t.x.sum((0, -2)), SHAPE, "twice"),
    ("dim by name",      lambda g: g.t.x.sum("rows"), TypeError, "'rows'"),
    ("index",            lambda g: g.t.x[3], IndexError, r"3 is out of bounds.*\[3, 4\]"),
    ("index tensor",     lambda g: g.t.x[g.t.high], IndexError, r"4.*out of bounds"),
    ("index negative",   lambda g: g.t.x[pn.tensor([-4])], IndexError, "-4|-1"),
    ("index of float",   lambda g: g.t.x[g.t.nan], IndexError, "integers or bool.*float32"),
    ("index of text",    lambda g: g.t.x["a"], IndexError, "'a' is not an index"),
    ("too many",         lambda g: g.t.x[0, 0, 0], IndexError, "too many"),
    ("mask",             lambda g: g.t.x[:, g.t.mask], IndexError, "boolean|bool"),
    ("gather index",     lambda g: g.t.x.gather(1, pn.full((3, 1), 4)), IndexError, r"index\[0, 0, 0\] is 4.*4 rows"),
    ("setitem index",    lambda g: g.t.out.__setitem__(g.t.high, 1.0), IndexError, "4.*out of bounds"),
    ("max of nothing",   lambda g: pn.zeros(0).max(), (IndexError, *SHAPE), "no elements"),
    ("argmax of nothing", lambda g: pn.zeros(0, 3).argmax(0), IndexError, r"\[0, 3\]"),
    # Labels
    ("labels high",      lambda g: F.cross_entropy(g.t.x, g.t.high),
                         IndexError, r"labels\[1\] is 4.*4 classes \(0 to 3.*ignore_index -100"),
    ("labels low",       lambda g: F.cross_entropy(g.t.x, g.t.low), IndexError, r"labels\[1\] is -1.*4 classes"),
    ("labels nll",       lambda g: F.nll_loss(g.t.x, g.t.high, ignore_index=2),
                         IndexError, r"labels\[1\] is 4.*ignore_index 2"),
    ("labels count",     lambda g: F.cross_entropy(g.t.x, pn.tensor([0, 1])), SHAPE, r"\[2\].*\[3, 4\].*\[3\]"),
    ("labels of NaN",    lambda g: F.cross_entropy(g.t.x, g.t.nan), SHAPE, "int64"),
    ("labels of float",  lambda g: F.nll_loss(g.t.x, g.t.nan), DTYPE, "int64.*float32"),
    ("labels of bool",   lambda g: F.cross_entropy(g.t.x, g.t.mask), DTYPE, "int64.*bool"),
    ("labels as array",  lambda g: F.cross_entropy(g.t.x, g.labels), DTYPE, "int64.*ndarray"),
    ("class weights",    lambda g: F.cross_entropy(g.t.x, g.t.labels, weight=g.t.b), SHAPE, r"4 numbers.*\[5\]"),
    # Element types
    ("object",           lambda g: pn.tensor(np.array([object()])), DTYPE, "object"),
    ("None",             lambda g: pn.tensor(None), DTYPE, "object"),
    ("text",             lambda g: pn.tensor("abc"), DTYPE, "U3"),
    ("texts",            lambda g: pn.tensor(["1", "2"]), DTYPE, "U1"),
    ("texts as numbers", lambda g: pn.tensor(["1", "2"], dtype="float32"), DTYPE, "U1"),
    ("complex",          lambda g: pn.tensor([1j]), DTYPE, "complex128"),
    ("dates",            lambda g: pn.tensor(np.array(["2020-01-01"], "M8[D]")), DTYPE, "datetime64"),
    ("half",             lambda g: pn.from_numpy(np.zeros(2, np.float16)), DTYPE, "float16.*float32"),
    ("dtype",            lambda g: pn.zeros(2, dtype="float17"), DTYPE, "float17.*float32"),
    ("dtype of object",  lambda g: pn.zeros(2, dtype=object), DTYPE, "object.*float32"),
    ("default dtype",    lambda g: pn.set_default_dtype(np.int64), DTYPE, "int64"),
    ("byte order",       lambda g: pn.from_numpy(np.zeros(2, ">f4")), DTYPE, ">f4"),
    ("not an array",     lambda g: pn.from_numpy([1.0]), TypeError, "list"),
    ("matmul of two",    lambda g: g.t.x @ g.t.d.t(), DTYPE, r"float32 and float64.*\.to"),
    ("linear of two",    lambda g: F.linear(g.t.x, g.t.w.double()), DTYPE, r"float32 and float64"),
    ("mean of integers", lambda g: g.t.ints.mean(), DTYPE, "int64.*float"),
    ("var of integers",  lambda g: g.t.ints.var(), DTYPE, "int64"),
    ("softmax of ints",  lambda g: g.t.ints.softmax(0), DTYPE, "int64"),
    ("loss of integers", lambda g: F.mse_loss(g.t.ints, g.t.ints), DTYPE, "int64"),
    ("grad of integers", lambda g: g.t.ints.requires_grad_(), DTYPE, "int64"),
    ("bool minus bool",  lambda g: g.t.mask - g.t.mask, DTYPE, "bool"),
    ("not of float",     lambda g: ~g.t.x, DTYPE, "float32"),
    ("and of float",     lambda g: g.t.x & g.t.x, DTYPE, "float32"),
    ("where",            lambda g: pn.where(g.t.x, g.t.x, g.t.x), DTYPE, "bool.*float32"),
    ("float into int",   lambda g: g.t.ints.add_(0.5), DTYPE, "int64"),
    ("operand",          lambda g: g.t.x + "1", TypeError, "unsupported operand"),
    ("grad not tensor",  lambda g: setattr(g.t.x, "grad", g.x), TypeError, "ndarray"),
    # Devices
    ("cuda",             lambda g: pn.zeros(2, device="cuda"), DEVICE, "'cuda'.*cpu"),
    ("cuda:1",           lambda g: g.t.x.to("cuda:1"), DEVICE, "'cuda:1'.*cpu"),
    (".cuda()",          lambda g: g.t.x.cuda(), DEVICE, "cpu"),
    ("device",           lambda g: pn.device("mps"), DEVICE, "'mps'.*cpu"),
    ("module on cuda",   lambda g: nn.Linear(2, 2, device="cuda"), DEVICE, "'cuda'.*cpu"),
    ("module to cuda",   lambda g: nn.Linear(2, 2).to("cuda"), DEVICE, "'cuda'.*cpu"),
    ("generator",        lambda g: pn.Generator("cuda"), DEVICE, "'cuda'.*cpu"),
    # Memory
    ("read-only",        lambda g: kernel("relu", g.x, g.locked), ValueError, "y is written.*read-only"),
    ("read-only tensor", lambda g: g.t.locked.add_(1), ValueError, "read-only"),
    ("read-only fill",   lambda g: g.t.locked.zero_(), ValueError, "read-only"),
    ("read-only setitem", lambda g: g.t.locked.__setitem__(0, 1.0), ValueError, "read-only"),
    ("misaligned",       lambda g: kernel("relu", off_by_a_byte(g.x), g.out), ValueError, "x is not aligned.*copy"),
    ("misaligned output", lambda g: kernel("relu", g.x, off_by_a_byte(g.out)), ValueError, "y is not aligned.*copy"),
    ("misaligned share", lambda g: pn.from_numpy(off_by_a_byte(g.x)), ValueError, "aligned.*copy"),
    ("repeated output",  lambda g: kernel("relu", g.x, np.broadcast_to(g.one, (3, 4))), ValueError, "y is written"),
    ("expanded in place", lambda g: g.t.one.expand(3).add_(1), ValueError, "repeats|read-only"),
    ("overlap",          lambda g: kernel("relu", g.out.reshape(-1)[:8], g.out.reshape(-1)[1:9]),
                         ValueError, "y is written and overlaps x.*copy"),
    ("overlap reversed", lambda g: kernel("neg", g.out, g.out[::-1]), ValueError, "overlaps"),
    ("matmul in place",  lambda g: kernel("matmul", g.x[:, :3], g.out[:3, :3], g.out[:3, :3]),
                         ValueError, "c is written and overlaps b"),
    ("two outputs",      lambda g: kernel("dense_grad_w", g.y, g.x, (o := np.zeros((5, 4), "f4")), o.reshape(-1)[:5]),
                         ValueError, "overlaps"),
    ("one for two outputs", lambda g: kernel("momentum", g.out, g.out, g.x, g.hyper),
                         ValueError, "p is written and overlaps v.*copy"),
    ("outputs one apart", lambda g: kernel("momentum", *[g.out.reshape(-1)[i:i + 8] for i in (0, 1)], g.x[:2].reshape(-1),
                                           g.hyper), ValueError, "p is written and overlaps v"),
    ("backwards overlap", lambda g: kernel("neg", g.out.reshape(-1)[1:9], g.out.reshape(-1)[:8]), ValueError, "overlaps"),
    ("transposed in place", lambda g: kernel("copy", g.out[:, :3], g.out[:, :3].T), ValueError, "y is written and overlaps x"),
    ("a row of itself",  lambda g: kernel("add", g.out, g.out[:1], g.out), ValueError, "z is written and overlaps y"),
    ("another type",     lambda g: kernel("cast", g.d.view(np.int64), g.d), ValueError, "y is written and overlaps x"),
    ("softmax in place", lambda g: kernel("softmax", g.out[None], g.out[None]), ValueError, "y is written and overlaps x"),
    ("hyper in place",   lambda g: kernel("sgd", h := np.zeros(7), np.zeros(7), h), ValueError, "p is written and overlaps hyper"),
    ("table of itself",  lambda g: kernel("put", g.out, g.labels[:1], g.out[:1]), ValueError, "table is written and overlaps x"),
    ("read-only table",  lambda g: kernel("scatter_add", g.locked, g.low * 0, g.x), ValueError, "table is written.*read-only"),
    ("repeated rows",    lambda g: kernel("matmul", g.x[:, :3], g.x[:, :3], np.lib.stride_tricks.as_strided(g.out, (3, 3), (0, 4))),
                         ValueError, "c is written, but this array repeats"),
    # Kernels: counts, names, dtypes, shapes
    ("no such kernel",   lambda g: kernel("sgdd", g.x), ValueError, "'sgdd' is not a kernel"),
    ("buffers",          lambda g: kernel("add", g.x, g.x), TypeError, "takes 3 buffers and 0 attrs, got 2 and 0"),
    ("attrs",            lambda g: kernel("elu", g.x, g.out), TypeError, "takes 2 buffers and 1 attrs, got 2 and 0"),
    ("not an array",     lambda g: kernel("relu", [1.0], g.out), DTYPE, "x must be a plain NumPy array.*list"),
    ("a subclass",       lambda g: kernel("relu", np.ma.masked_array(g.x), g.out),
                         DTYPE, "plain NumPy array.*MaskedArray"),
    ("an int array",     lambda g: kernel("relu", g.ints, g.out), DTYPE, "float32 or float64, not int64"),
    ("a mixed call",     lambda g: kernel("relu", g.x, np.zeros((3, 4))), DTYPE, "y must be float32.*float64"),
    ("int32 labels",     lambda g: kernel("take", g.x, np.zeros(2, np.int32), g.out[:2]),
                         DTYPE, "index must be int64, not int32"),
    ("float32 hyper",    lambda g: kernel("sgd", g.out, g.x, g.hyper.astype("f4")),
                         DTYPE, "hyper must be float64, not float32"),
    ("short hyper",      lambda g: kernel("sgd", g.out, g.x, g.hyper[1:]), SHAPE, "hyper has 6 where 7 fits"),
    ("rank",             lambda g: kernel("matmul", g.one, g.x, g.out), SHAPE, "a must have 2 axes, not 1"),
    ("extent",           lambda g: kernel("matmul", g.x, g.w, np.zeros((3, 4), np.float32)),
                         SHAPE, r"b has 5 where 4 fits \(axis k\)"),
    ("output shape",     lambda g: kernel("add", g.x, g.x, g.one), SHAPE, r"\[3, 4\] does not fit \[1\]"),
    ("scalar slot",      lambda g: kernel("nll", g.x, g.labels, g.x[0], g.b[:2], g.b[:3], g.one, attrs=(-100.0, 1.0)),
                         SHAPE, "loss must hold one element"),
    ("take",             lambda g: kernel("take", g.x, g.high, g.out),
                         IndexError, r"index\[1\] is 4, out of bounds for 3 rows \(0 to 2\)"),
    ("scatter_add",      lambda g: kernel("scatter_add", g.out, g.low, g.x), IndexError, r"index\[1\] is -1"),
    ("put",              lambda g: kernel("put", g.out, g.high, g.x), IndexError, r"index\[1\] is 4"),
    # Numbers and names
    ("activation",       lambda g: F.dense(g.t.x, g.t.w, g.t.b, "rleu"),
                         ValueError, "'rleu' is not an activation; choose from identity, sigmoid"),
    ("Dense",            lambda g: nn.Dense(2, 2, "rleu"), ValueError, "'rleu'.*relu"),
    ("Dense parameter",  lambda g: nn.Dense(2, 2, "relu", alpha=1), TypeError, "relu.*alpha"),
    ("reduction",        lambda g: F.mse_loss(g.t.x, g.t.x, reduction="avg"),
                         ValueError, "'avg' is not a reduction; choose from none, mean, sum"),
    ("delta",            lambda g: F.huber_loss(g.t.x, g.t.x, delta=0.0), ValueError, "delta > 0, got 0"),
    ("smoothing",        lambda g: F.cross_entropy(g.t.x, g.t.labels, label_smoothing=1.5),
                         ValueError, "between 0 and 1, got 1.5"),
    ("dropout",          lambda g: F.dropout(g.t.x, 1.5), ValueError, "between 0 and 1, got 1.5"),
    ("gelu",             lambda g: F.gelu(g.t.x, "erf"), ValueError, "'none' or 'tanh', got 'erf'"),
    ("hardtanh",         lambda g: F.hardtanh(g.t.x, 1.0, -1.0), ValueError, "min_val <= max_val, got min_val=1.0, max_val=-1.0"),
    ("Hardtanh",         lambda g: nn.Hardtanh(1.0, 1.0), ValueError, "min_val < max_val, got 1.0 and 1.0"),
    ("softshrink",       lambda g: F.softshrink(g.t.x, -0.5), ValueError, "lambd >= 0, got lambd=-0.5"),
    ("celu",             lambda g: F.celu(g.t.x, alpha=0.0), ValueError, "alpha != 0, got alpha=0.0"),
    ("threshold",        lambda g: F.threshold(g.t.x, 1.0), TypeError, "threshold also needs value"),
    ("Dense threshold",  lambda g: nn.Dense(2, 2, "threshold", value=1.0), TypeError, "threshold also needs threshold"),
    ("prelu channels",   lambda g: F.prelu(g.t.x, g.t.b), SHAPE, r"weight of 5 numbers does not fit.*\[3, 4\].*4 channels"),
    ("prelu rank",       lambda g: F.prelu(g.t.x, g.t.w), SHAPE, "one number or one a channel"),
    ("rrelu",            lambda g: F.rrelu(g.t.x, 0.5, 0.1), ValueError, "lower <= upper, got 0.5 and 0.1"),
    ("glu odd",          lambda g: F.glu(g.t.x, 0), SHAPE, "extent 3 is odd"),
    ("glu axis",         lambda g: F.glu(g.t.x, 2), IndexError, "dim 2 is not an axis"),
    ("maxout",           lambda g: F.maxout(g.t.x, 3), SHAPE, r"groups of 3, which do not divide axis -1 of shape \[3, 4\]"),
    ("Softmax2d",        lambda g: nn.Softmax2d()(g.t.x), SHAPE, "3 or 4 axes"),
    ("attention",        lambda g: F.scaled_dot_product_attention(g.t.x, g.t.x, g.t.x, g.t.x, is_causal=True),
                         ValueError, "attn_mask or is_causal, not both"),
    ("beta",             lambda g: F.smooth_l1_loss(g.t.x, g.t.x, beta=-1.0), ValueError, "beta >= 0, got -1"),
    ("quantile",         lambda g: F.quantile_loss(g.t.x, g.t.x, 1.5), ValueError, "0 < q < 1, got 1.5"),
    ("tweedie",          lambda g: F.tweedie_loss(g.t.x, g.t.x, 0.5), ValueError, "got 0.5"),
    ("bce shape",        lambda g: F.binary_cross_entropy(g.t.x, g.t.b), SHAPE, r"target of shape \[5\].*\[3, 4\]"),
    ("batchmean",        lambda g: F.mse_loss(g.t.x, g.t.x, reduction="batchmean"), ValueError, "'batchmean' is not a reduction"),
    ("variance",         lambda g: F.gaussian_nll_loss(g.t.x, g.t.x, -1.0), ValueError, "variances >= 0, got -1"),
    ("variances",        lambda g: F.gaussian_nll_loss(g.t.x, g.t.x, g.t.b), SHAPE, r"var of shape \[5\].*\[3, 4\]"),
    ("multi margin p",   lambda g: F.multi_margin_loss(g.t.x, g.t.labels, p=3), ValueError, "p=1 or p=2, got 3"),
    ("multi margin class", lambda g: F.multi_margin_loss(g.t.x, pn.tensor([0, 1, 9])), IndexError, "9"),
    ("multilabel",       lambda g: F.multilabel_margin_loss(g.t.x, g.t.labels), SHAPE, "of one shape"),
    ("ranking",          lambda g: F.margin_ranking_loss(g.t.x, g.t.x, g.t.b), SHAPE, "as many axes"),
    ("cosine",           lambda g: F.cosine_embedding_loss(g.t.x, g.t.x, g.t.x), SHAPE, r"inputs \[rows, n\]"),
    ("triplet margin",   lambda g: F.triplet_margin_loss(g.t.x, g.t.x, g.t.x, margin=0), ValueError, "margin > 0, got 0"),
    ("triplet axes",     lambda g: F.triplet_margin_loss(g.t.x, g.t.x, g.t.b), SHAPE, "as many axes"),
    ("linear ce",        lambda g: F.linear_cross_entropy(g.t.b, g.t.w, g.t.labels), SHAPE, "linear_weight"),
    ("ctc blank",        lambda g: F.ctc_loss(g.t.x, g.t.labels, [3], [1], blank=4), ValueError, "blank must be one of 4 classes, got 4"),
    ("ctc lengths",      lambda g: F.ctc_loss(g.t.x, g.t.labels, [4], [1]), ValueError, "from 0 to 3"),
    ("ctc class",        lambda g: F.ctc_loss(g.t.x, pn.tensor([7]), [3], [1]), IndexError, "from 0 to 3"),
    ("clamp",            lambda g: g.t.x.clamp(), ValueError, "at least one of min and max"),
    ("randint",          lambda g: pn.randint(5, 5, (2,)), ValueError, "low < high, got 5 and 5"),
    ("uniform",          lambda g: g.t.out.uniform_(2, 1), ValueError, "a <= b, got 2 and 1"),
    ("normal",           lambda g: g.t.out.normal_(0, -1), ValueError, "std >= 0, got -1"),
    ("fan",              lambda g: nn.init.xavier_uniform_(g.t.one), SHAPE, "at least 2 axes.*1"),
    ("gain",             lambda g: nn.init.calculate_gain("rleu"), ValueError, "'rleu'.*relu"),
    ("lr",               lambda g: optim.SGD([g.t.x], lr=-1), ValueError, "lr must be between 0 and inf, got -1"),
    ("betas",            lambda g: optim.Adam([g.t.x], betas=(0.9, 1.0)), ValueError, r"betas\[1\].*got 1.0"),
    ("no parameters",    lambda g: optim.SGD([], lr=1), ValueError, "empty"),
    ("one parameter",    lambda g: optim.SGD(g.t.x, lr=1), TypeError, "not one tensor"),
    ("an array",         lambda g: optim.SGD([g.x], lr=1), TypeError, "ndarray"),
    ("twice",            lambda g: optim.SGD([g.t.x, g.t.x], lr=1), ValueError, "twice"),
    ("not a leaf",       lambda g: optim.SGD([g.t.d.clone().requires_grad_() * 2], lr=1), ValueError, "not a leaf"),
    ("backend",          lambda g: pn.set_backend("nativ"), ValueError, "'nativ' is not a backend.*reference"),
    ("ISA",              lambda g: pn.kernels.make_backend("native:mmx"), ValueError, "'native:mmx'.*reference"),
    ("truth of mode",    lambda g: nn.Linear(2, 2).train(2), ValueError, "True or False, got 2"),
    ("module name",      lambda g: nn.Module().add_module("a.b", nn.Linear(1, 1)), KeyError, "'a.b'"),
    ("missing keys",     lambda g: nn.Linear(4, 5).load_state_dict({"bias": g.t.b, "w": g.t.w}),
                         RuntimeError, 'Missing.*"weight".\n.*Unexpected.*"w"'),
]


def plain(g):
    return {k: v.tobytes() for k, v in vars(g).items() if isinstance(v, np.ndarray)}


def refusal(row, backend):
    """The exception of a call on a backend, after which every input must be what it was."""
    _, call, errors, words = row
    g = inputs()
    before, current = plain(g), pn.current_backend()
    with pn.backend(backend), pytest.raises(errors, match=words) as caught:
        call(g)
    assert plain(g) == before, "an input was changed"
    assert pn.current_backend() is current
    return caught.value


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_refusal(row):
    caught = {backend: refusal(row, backend) for backend in BACKENDS}
    for error in caught.values():
        assert type(error) is type(caught["reference"])
        assert str(error) == str(caught["reference"]), "backends differ in what they say"
        if row[2] in (SHAPE, DTYPE, DEVICE):
            assert all(isinstance(error, kind) for kind in row[2]), f"{type(error)} is not all of {row[2]}"


# ------------------------------------------------------------------------------------------ and what is no error at all

@pytest.mark.parametrize("on", BACKENDS, indirect=True)
@pytest.mark.parametrize("call", [
    lambda: pn.zeros(0, 3) @ pn.zeros(3, 2), lambda: pn.zeros(2, 0) @ pn.zeros(0, 3),
    lambda: F.linear(pn.zeros(0, 3), pn.zeros(2, 3)), lambda: pn.zeros(0).sum(), lambda: pn.zeros(0, 3).sum(0),
    lambda: pn.zeros(3, 0).softmax(1), lambda: pn.zeros(0).relu(), lambda: pn.cat([pn.zeros(0, 2), pn.ones(1, 2)]),
    lambda: pn.zeros(0, 2)[:0], lambda: pn.zeros(3, 0)[pn.tensor([0, 2])],
    lambda: pn.zeros(0) + 1, lambda: pn.zeros(2, 0).reshape(0, 5), lambda: nn.Linear(0, 2)(pn.zeros(3, 0)),
    lambda: pn.zeros(1, device="cpu").to("cpu"), lambda: pn.zeros(1, device=pn.device("cpu:0")).cpu(),
], ids=range(15))
def test_zero_sizes_and_the_cpu_are_legal(call, on):
    assert np.isfinite(call().array).all()


@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_means_of_nothing_are_nan(on):
    assert np.isnan(pn.zeros(0).mean().item())
    assert np.isnan(F.mse_loss(pn.zeros(0), pn.zeros(0)).item())
    assert np.isnan(F.cross_entropy(pn.zeros(2, 3), pn.tensor([-100, -100])).item())


@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_nan_goes_where_it_must(on):
    x = pn.tensor([[1.0, np.nan, 2.0]])
    for f in (pn.relu, pn.sigmoid, pn.tanh, pn.abs, lambda t: t.clamp(0, 1), lambda t: t.maximum(pn.zeros(3)),
              lambda t: t.amax(1),
              lambda t: t.sum(1), lambda t: t.softmax(1), lambda t: F.cross_entropy(t, pn.tensor([0]))):
        assert np.isnan(f(x).array).any()


@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_broadcasting_losses_warn(on):
    with pytest.warns(UserWarning, match=r"\[4, 1\].*\[4\].*rarely"):
        F.mse_loss(pn.zeros(4, 1), pn.zeros(4))


@pytest.mark.parametrize("on", BACKENDS, indirect=True)
def test_a_failed_step_leaves_the_optimizer_usable(on):
    p = pn.ones(2, requires_grad=True)
    optimizer = optim.Adam([p])
    with pytest.raises(ValueError, match=r"groups of \[2\] parameters"):
        optimizer.load_state_dict({"state": {}, "param_groups": [{"params": [0, 1], "lr": 1.0}]})
    p.grad = pn.ones(2)
    optimizer.step()
    assert p.tolist() == pytest.approx([0.999, 0.999])
