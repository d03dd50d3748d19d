# SPDX-License-Identifier: BSD-3-Clause
"""Recurrent layers: a state that each element of a sequence moves on. Everything is made of linear and activations.

The x side of a whole sequence is one product; what is left for each step is the product with the state. Weights of the gates
lie one below the other, as in torch: i, f, g, o of LSTM, r, z, n of GRU.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

from ..kernels import DtypeError, ShapeError
from ..tensor import Tensor, _device, cat, empty, stack
from . import functional as F
from . import init
from .module import Module, Parameter

# A step: (gates of x, state, gates of h as a function of h) -> state. Its first part is h.


def _simple(activation: str) -> Callable:
    def step(x: Tensor, state: tuple, of_h: Callable) -> tuple:
        return (getattr(x + of_h(state[0]), activation)(),)
    return step


def _lstm(x: Tensor, state: tuple, of_h: Callable) -> tuple:
    h, c = state
    i, f, g, o = (x + of_h(h)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, state: tuple, of_h: Callable) -> tuple:
    h, = state
    (rx, zx, nx), (rh, zh, nh) = x.chunk(3, -1), of_h(h).chunk(3, -1)
    n = (nx + (rx + rh).sigmoid() * nh).tanh()
    return (n + (zx + zh).sigmoid() * (h - n),)


STEPS = {  # mode: step, gates, parts of the state
    "RNN_TANH": (_simple("tanh"), 1, 1),
    "RNN_RELU": (_simple("relu"), 1, 1),
    "LSTM":     (_lstm, 4, 2),
    "GRU":      (_gru, 3, 1),
}


def _mode(nonlinearity: str) -> str:
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"{nonlinearity!r} is no nonlinearity of an RNN; choose from tanh, relu")
    return f"RNN_{nonlinearity.upper()}"


def _matrices(gates: int, inputs: int, hidden: int, output: int, bias: bool, dtype: Any) -> dict[str, Parameter]:
    """The parameters of one direction of one layer, whose h has `output` elements, in torch's order."""
    shapes: dict[str, tuple[int, ...]] = {"weight_ih": (gates * hidden, inputs), "weight_hh": (gates * hidden, output)}
    if bias:
        shapes |= {"bias_ih": (gates * hidden,), "bias_hh": (gates * hidden,)}
    if output != hidden:
        shapes["weight_hr"] = (output, hidden)
    return {name: Parameter(empty(*shape, dtype=dtype)) for name, shape in shapes.items()}


def _uniform(module: Module, hidden: int) -> None:
    bound = 1 / math.sqrt(hidden) if hidden > 0 else 0.0
    for p in module.parameters():
        init.uniform_(p, -bound, bound)


def _check_input(name: str, input: Any, features: int, weight: Tensor, ranks: tuple[int, int]) -> None:
    if not isinstance(input, Tensor):
        raise TypeError(f"{name} takes a tensor, got {type(input).__name__}; sequences of several lengths are padded to one")
    if input.ndim not in ranks:
        raise ShapeError(f"{name} takes an input of {ranks[0]} or {ranks[1]} axes, given {list(input.shape)}")
    if input.dtype != weight.dtype:
        raise DtypeError(f"{name} takes input and weights of one dtype, given {input.dtype} and {weight.dtype}")
    if input.shape[-1] != features:
        raise ShapeError(f"{name} takes an input of {features} features, given {list(input.shape)}")


def _state_of(name: str, hx: Any, shapes: list[tuple[int, ...]], input: Tensor) -> tuple:
    """The parts of a state, checked; zeros without one."""
    if hx is None:
        return tuple([input.new_zeros(*shape) for shape in shapes])
    parts = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    if [p.shape for p in parts] != shapes:
        given, fits = (" and ".join(str(list(s)) for s in some) for some in ([p.shape for p in parts], shapes))
        raise ShapeError(f"{name} with an input of {list(input.shape)} takes a state of {fits}, given {given}")
    if any(p.dtype != input.dtype for p in parts):
        raise DtypeError(f"{name} takes input and state of one dtype, given {input.dtype} and {parts[0].dtype}")
    return parts


class RNNCellBase(Module):
    """One step of a recurrent layer: input [N, input_size], state [N, hidden_size], both also without N.

    Parameters weight_ih, weight_hh, bias_ih and bias_hh start uniform in +-1/sqrt(hidden_size). Without a state it is zeros.
    """

    _mode = ""

    def __init__(self, input_size: int, hidden_size: int, bias: bool, num_chunks: int, device: Any = None,
                 dtype: Any = None) -> None:
        super().__init__()
        _device(device)
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        for name, p in _matrices(num_chunks, input_size, hidden_size, hidden_size, bias, dtype).items():
            self.register_parameter(name, p)
        for name in () if bias else ("bias_ih", "bias_hh"):
            self.register_parameter(name, None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        _uniform(self, self.hidden_size)

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        name = type(self).__name__
        _check_input(name, input, self.input_size, self.weight_ih, (1, 2))
        step, _, parts = STEPS[self._mode]
        state = _state_of(name, hx, [(*input.shape[:-1], self.hidden_size)] * parts, input)
        x = F.linear(input, self.weight_ih, self.bias_ih)
        state = step(x, state, lambda h: F.linear(h, self.weight_hh, self.bias_hh))
        return state if parts > 1 else state[0]

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")


class RNNCell(RNNCellBase):
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu. Elman 1990."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh", device: Any = None,
                 dtype: Any = None) -> None:
        mode = _mode(nonlinearity)
        super().__init__(input_size, hidden_size, bias, 1, device, dtype)
        self.nonlinearity, self._mode = nonlinearity, mode

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}")


class LSTMCell(RNNCellBase):
    """c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c') for the state (h, c). Hochreiter, Schmidhuber 1997;
    Gers et al. 2000. i, f, g and o are the parts of W_ih x + b_ih + W_hh h + b_hh."""

    _mode = "LSTM"

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None) -> None:
        super().__init__(input_size, hidden_size, bias, 4, device, dtype)


class GRUCell(RNNCellBase):
    """h' = (1 - z) n + z h with r and z sigmoids of their gates of x and h, n = tanh(n_x + r n_h). Cho et al. 2014."""

    _mode = "GRU"

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None) -> None:
        super().__init__(input_size, hidden_size, bias, 3, device, dtype)


def _elements(x: Tensor) -> list[Tensor]:
    """The parts of x along axis 0, by halves: the gradient of each is put among zeros of the size of the half it came from,
    which is n log n work where parts of the whole would make it n^2."""
    return [*_elements(x[: len(x) // 2]), *_elements(x[len(x) // 2 :])] if len(x) > 1 else [x[0]]


class RNNBase(Module):
    """num_layers recurrent layers, each on the outputs of that before, in one direction or both.

    Input [L, N, input_size], with batch_first [N, L, input_size], or [L, input_size]; output alike, with the width of h times
    the directions. States are [layers times directions, N, width], whatever batch_first says; without one they are zeros.
    Parameters weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, weight_hr_l0 (only with proj_size), and those of the other
    direction with _reverse at the end, start uniform in +-1/sqrt(hidden_size). dropout is between layers, in training.
    Raises TypeError, ValueError, ShapeError, DtypeError.
    """

    def __init__(self, mode: str, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0,
                 device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        _device(device)
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
            raise ValueError(f"dropout takes a probability between 0 and 1, got {dropout!r}")
        for name, value, kind in (("bias", bias, bool), ("batch_first", batch_first, bool), ("input_size", input_size, int),
                                  ("hidden_size", hidden_size, int)):
            if not isinstance(value, kind):
                raise TypeError(f"{name} must be of type {kind.__name__}, got {value!r}")
        for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if not 0 <= proj_size < hidden_size:
            raise ValueError(f"proj_size must be less than the hidden_size of {hidden_size} and not negative, got {proj_size}")
        if mode not in STEPS:
            raise ValueError(f"{mode!r} is no mode of an RNN; choose from {', '.join(STEPS)}")
        if dropout > 0 and num_layers == 1:
            warnings.warn(f"dropout={dropout} is between layers, and there is one: nothing is dropped", stacklevel=3)
        self.mode, self.input_size, self.hidden_size, self.num_layers = mode, input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout, self.bidirectional = bias, batch_first, float(dropout), bidirectional
        self.proj_size = proj_size
        output, width = proj_size or hidden_size, input_size
        for layer in range(num_layers):
            for suffix in self._directions():
                made = _matrices(STEPS[mode][1], width, hidden_size, output, bias, dtype)
                for name, p in made.items():
                    self.register_parameter(f"{name}_l{layer}{suffix}", p)
            width = output * len(self._directions())
        self.reset_parameters()

    def _directions(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    def reset_parameters(self) -> None:
        _uniform(self, self.hidden_size)

    def flatten_parameters(self) -> None:
        """Nothing: it is for GPUs."""

    def _weights(self, layer: int, suffix: str) -> dict[str, Any]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        return {name: self._parameters.get(f"{name}_l{layer}{suffix}") for name in names}

    @property
    def all_weights(self) -> list[list[Parameter]]:
        return [[w for w in self._weights(layer, suffix).values() if w is not None]
                for layer in range(self.num_layers) for suffix in self._directions()]

    def forward(self, input: Tensor, hx: Any = None) -> tuple:
        name = type(self).__name__
        _check_input(name, input, self.input_size, self.all_weights[0][0], (2, 3))
        parts = STEPS[self.mode][2]
        unbatched = input.ndim == 2
        x = input.unsqueeze(1) if unbatched else input.transpose(0, 1) if self.batch_first else input
        if not len(x):
            raise ShapeError(f"{name} takes sequences of at least one element, given {list(input.shape)}")
        rows = self.num_layers * len(self._directions())
        widths = [self.proj_size or self.hidden_size, self.hidden_size][:parts]
        batch = () if unbatched else (x.shape[1],)
        hx = _state_of(name, hx, [(rows, *batch, width) for width in widths], input)
        if unbatched:
            hx = tuple([part.unsqueeze(1) for part in hx])
        last: list[tuple] = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            outputs = []
            for suffix in self._directions():
                y, state = self._run(x, tuple([part[len(last)] for part in hx]), self._weights(layer, suffix), bool(suffix))
                outputs.append(y)
                last.append(state)
            x = cat(outputs, -1) if len(outputs) > 1 else outputs[0]
        states = tuple([stack(part) for part in zip(*last)])
        if unbatched:
            x, states = x.squeeze(1), tuple([part.squeeze(1) for part in states])
        elif self.batch_first:
            x = x.transpose(0, 1)
        return x, states if parts > 1 else states[0]

    def _run(self, x: Tensor, state: tuple, w: dict[str, Any], backwards: bool) -> tuple[Tensor, tuple]:
        """One direction of one layer along x [L, N, ...]: the h of each step, and the state in the end."""
        step = STEPS[self.mode][0]
        gates, outputs = _elements(F.linear(x, w["weight_ih"], w["bias_ih"])), []
        for part in reversed(gates) if backwards else gates:
            state = step(part, state, lambda h: F.linear(h, w["weight_hh"], w["bias_hh"]))
            if w["weight_hr"] is not None:
                state = (F.linear(state[0], w["weight_hr"]), *state[1:])
            outputs.append(state[0])
        return stack(outputs[::-1] if backwards else outputs), state

    def extra_repr(self) -> str:
        shown = (("proj_size", 0), ("num_layers", 1), ("bias", True), ("batch_first", False), ("dropout", 0.0),
                 ("bidirectional", False))
        return ", ".join([f"{self.input_size}, {self.hidden_size}",
                          *[f"{name}={getattr(self, name)}" for name, usual in shown if getattr(self, name) != usual]])


class RNN(RNNBase):
    """Layers of RNNCell; see RNNBase. Returns the output and the last state h."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh", bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, device: Any = None,
                 dtype: Any = None) -> None:
        super().__init__(_mode(nonlinearity), input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
                         device=device, dtype=dtype)
        self.nonlinearity = nonlinearity


class LSTM(RNNBase):
    """Layers of LSTMCell; see RNNBase. Takes and returns its state as (h, c).

    proj_size: h is a product of that width, W_hr h; c keeps the hidden_size. Sak et al. 2014.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
                 dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0, device: Any = None,
                 dtype: Any = None) -> None:
        super().__init__("LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
                         device, dtype)


class GRU(RNNBase):
    """Layers of GRUCell; see RNNBase. Returns the output and the last state h."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
                 dropout: float = 0.0, bidirectional: bool = False, device: Any = None, dtype: Any = None) -> None:
        super().__init__("GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
                         device=device, dtype=dtype)


__all__ = ["GRU", "GRUCell", "LSTM", "LSTMCell", "RNN", "RNNBase", "RNNCell", "RNNCellBase"]
