# SPDX-License-Identifier: BSD-3-Clause
"""Modules: named parameters, buffers and parts, with torch's names, so that state_dicts can be exchanged."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from inspect import Signature
from typing import Any, NamedTuple

from ..autograd import Function, is_grad_enabled
from ..kernels import DtypeError, ShapeError, watcher, watchers
from ..tensor import Tensor, _Handle, _names_device, as_dtype, as_tensor, zeros


class Parameter(Tensor):
    """A tensor that a Module trains. Shares memory with data."""

    def __new__(cls, data: Any = None, requires_grad: bool = True) -> "Parameter":
        self = super().__new__(cls)
        source = zeros(0) if data is None else as_tensor(data)
        self.array, self.storage, self.node = source.array, source.storage, None
        self.needs_grad = False
        self.requires_grad_(requires_grad)
        return self

    def __init__(self, data: Any = None, requires_grad: bool = True) -> None:
        pass

    def __deepcopy__(self, memo: dict) -> Any:
        copied = super().__deepcopy__(memo)
        copied._grad = None
        return copied

    def __repr__(self) -> str:
        return "Parameter containing:\n" + super().__repr__()


class LoadResult(NamedTuple):
    """What load_state_dict could not match."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return f"LoadResult(missing_keys={self.missing_keys}, unexpected_keys={self.unexpected_keys})"


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class _Tapped(Function):
    """Tensors as they are; their gradients go by way of a function."""

    @staticmethod
    def forward(ctx: Any, tap: Callable, zeros: bool, *tensors: Tensor) -> tuple:
        """zeros: for a gradient that is not there."""
        ctx.tap = tap
        ctx.set_materialize_grads(zeros)
        ctx.mark_non_differentiable(*[t for t in tensors if not t.requires_grad])
        return tensors

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple:
        return None, None, *ctx.tap(list(gradients))


class _Backward:
    """The backward hooks of one call of a module: gradients of its outputs are kept until those of its inputs are there."""

    def __init__(self, module: "Module") -> None:
        self.module = module
        self.hooks, self.pre_hooks = list(module._backward_hooks.values()), list(module._backward_pre_hooks.values())
        self.of_outputs: tuple | None = None
        self.inputs = 0
        self.places: dict[str, list[int] | None] = {}            # of the tensors among inputs and outputs; None: no gradient

    def _tapped(self, which: str, values: tuple, tap: Callable) -> tuple:
        places = [i for i, v in enumerate(values) if isinstance(v, Tensor)]
        recorded = is_grad_enabled() and any(values[i].requires_grad for i in places)
        self.places[which] = places if recorded else None
        if not recorded:
            return values
        out = list(values)
        for i, t in zip(places, _Tapped.apply(tap, which == "inputs", *[values[i] for i in places])):
            out[i] = t
        return tuple(out) if type(values) is tuple else type(values)(*out)

    def tap_inputs(self, args: tuple) -> tuple:
        self.inputs = len(args)
        return self._tapped("inputs", args, self._at_inputs)

    def tap_outputs(self, y: Any) -> Any:
        many = isinstance(y, tuple)
        found = self._tapped("outputs", y if many else (y,), lambda gradients: self._at_outputs(gradients, len(y) if many else 1))
        return found if many else found[0]

    def _whole(self, which: str, gradients: Any, size: int) -> tuple:
        """One for each value, None for what is no tensor."""
        found: list[Any] = [None] * size
        for i, g in zip(self.places[which] or (), gradients):
            found[i] = g
        return tuple(found)

    def _at_outputs(self, gradients: list, size: int) -> list:
        found = self._whole("outputs", gradients, size)
        for hook in self.pre_hooks:
            found = self._replaced(found, hook(self.module, found), "grad_output")
        self.of_outputs = found
        if self.places["inputs"] is None:
            nothing = (None,) * self.inputs
            if any(g is not None for hook in self.hooks for g in hook(self.module, nothing, found) or ()):
                raise RuntimeError("a backward hook returned gradients of inputs that require none")
            self.of_outputs = None
        return [found[i] for i in self.places["outputs"] or ()]

    def _at_inputs(self, gradients: list) -> list:
        if self.of_outputs is None:                              # this gradient has come from elsewhere
            return gradients
        found = self._whole("inputs", gradients, self.inputs)
        for hook in self.hooks:
            found = self._replaced(found, hook(self.module, found, self.of_outputs), "grad_input")
        self.of_outputs = None
        return [found[i] for i in self.places["inputs"] or ()]

    @staticmethod
    def _replaced(before: tuple, after: Any, what: str) -> tuple:
        if after is None:
            return before
        if len(after) != len(before):
            raise RuntimeError(f"a backward hook returned {len(after)} values for {what}, which has {len(before)}")
        return tuple(after)


class Module:
    """Base of layers and models: define forward; parameters and submodules set as attributes are found by name."""

    training: bool

    def __init__(self) -> None:
        for name in ("_parameters", "_buffers", "_modules", *HOOKS):
            super().__setattr__(name, {})
        super().__setattr__("_transient", set())
        super().__setattr__("training", True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines no forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if watchers and (found := watcher()):
            found.calls_module(self)
        if not (self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks):
            return self.forward(*args, **kwargs)
        for hook in list(self._forward_pre_hooks.values()):
            changed = hook(self, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        backward = _Backward(self) if self._backward_hooks or self._backward_pre_hooks else None
        y = self.forward(*(args if backward is None else backward.tap_inputs(args)), **kwargs)
        for hook in list(self._forward_hooks.values()):
            changed = hook(self, args, y)
            y = y if changed is None else changed
        return y if backward is None else backward.tap_outputs(y)

    # Attributes

    def __setattr__(self, name: str, value: Any) -> None:
        tables = self.__dict__
        if "_parameters" not in tables:
            if isinstance(value, (Parameter, Module)):
                raise AttributeError(f"call super().__init__() before setting {name!r}")
            super().__setattr__(name, value)
            return
        if isinstance(value, Parameter):
            self._forget(name, but=self._parameters)
            self._parameters[name] = value
        elif isinstance(value, Module):
            self._forget(name, but=self._modules)
            self._modules[name] = value
        elif name in self._parameters:
            if value is not None:
                raise TypeError(f"{name!r} is a parameter; set it to a Parameter or None, not {type(value).__name__}")
            self._parameters[name] = None
        elif name in self._modules:
            if value is not None:
                raise TypeError(f"{name!r} is a submodule; set it to a Module or None, not {type(value).__name__}")
            self._modules[name] = None
        elif name in self._buffers:
            if value is not None and not isinstance(value, Tensor):
                raise TypeError(f"{name!r} is a buffer; set it to a tensor or None, not {type(value).__name__}")
            self._buffers[name] = value
        else:
            super().__setattr__(name, value)

    def _forget(self, name: str, but: dict[str, Any]) -> None:
        """Drop name from all tables but the one that keeps it, and its place there."""
        for table in (self.__dict__, self._parameters, self._buffers, self._modules):
            if table is not but:
                table.pop(name, None)

    def __getattr__(self, name: str) -> Any:
        for table in ("_parameters", "_buffers", "_modules"):
            found = self.__dict__.get(table, {})
            if name in found:
                return found[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __delattr__(self, name: str) -> None:
        for table in (self._parameters, self._buffers, self._modules):
            if name in table:
                del table[name]
                self._transient.discard(name)
                return
        super().__delattr__(name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._parameters, *self._buffers, *self._modules})

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        self._check_name(name)
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(f"parameter {name!r} must be a Parameter or None, not {type(param).__name__}")
        if param is not None and param.grad_fn is not None:
            raise ValueError(f"parameter {name!r} must be a leaf; this one was made by an operation: detach() it first")
        self._parameters[name] = param

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """A tensor that is part of the state but not trained; a non-persistent one stays out of state_dict."""
        self._check_name(name)
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"buffer {name!r} must be a tensor or None, not {type(tensor).__name__}")
        self._buffers[name] = tensor
        (self._transient.discard if persistent else self._transient.add)(name)

    def add_module(self, name: str, module: "Module | None") -> None:
        self._check_name(name)
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"module {name!r} must be a Module or None, not {type(module).__name__}")
        self._modules[name] = module

    register_module = add_module

    def _check_name(self, name: str) -> None:
        if not isinstance(name, str) or not name or "." in name:
            raise KeyError(f"{name!r} is no name for an attribute: it must be a non-empty string without a dot")
        if hasattr(self, name) and not (name in self._parameters or name in self._buffers or name in self._modules):
            raise KeyError(f"attribute {name!r} already exists")

    # Walking

    def named_modules(self, memo: set | None = None, prefix: str = "",
                      remove_duplicate: bool = True) -> Iterator[tuple[str, "Module"]]:
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, module in self._modules.items():
            if module is not None:
                yield from module.named_modules(memo, f"{prefix}.{name}" if prefix else name, remove_duplicate)

    def modules(self) -> Iterator["Module"]:
        return (m for _, m in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, "Module"]]:
        seen = set()
        for name, module in self._modules.items():
            if module is not None and module not in seen:
                seen.add(module)
                yield name, module

    def children(self) -> Iterator["Module"]:
        return (m for _, m in self.named_children())

    def _named(self, table: str, prefix: str, recurse: bool, remove_duplicate: bool) -> Iterator[tuple[str, Any]]:
        seen = set()
        for path, module in (
            self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate) if recurse else [(prefix, self)]
        ):
            for name, value in getattr(module, table).items():
                if value is None or (remove_duplicate and id(value) in seen):
                    continue
                seen.add(id(value))
                yield f"{path}.{name}" if path else name, value

    def named_parameters(self, prefix: str = "", recurse: bool = True,
                         remove_duplicate: bool = True) -> Iterator[tuple[str, Parameter]]:
        return self._named("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        return (p for _, p in self.named_parameters(recurse=recurse))

    def named_buffers(self, prefix: str = "", recurse: bool = True,
                      remove_duplicate: bool = True) -> Iterator[tuple[str, Tensor]]:
        return self._named("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        return (b for _, b in self.named_buffers(recurse=recurse))

    def get_submodule(self, target: str) -> "Module":
        module = self
        for name in target.split(".") if target else []:
            if module._modules.get(name) is None:
                raise AttributeError(f"{type(module).__name__} has no submodule {name!r} (of {target!r})")
            module = module._modules[name]
        return module

    def get_parameter(self, target: str) -> Parameter:
        path, _, name = target.rpartition(".")
        owner = self.get_submodule(path)
        if owner._parameters.get(name) is None:
            raise AttributeError(f"{type(owner).__name__} has no parameter {name!r}")
        return owner._parameters[name]

    def get_buffer(self, target: str) -> Tensor:
        path, _, name = target.rpartition(".")
        owner = self.get_submodule(path)
        if owner._buffers.get(name) is None:
            raise AttributeError(f"{type(owner).__name__} has no buffer {name!r}")
        return owner._buffers[name]

    def set_submodule(self, target: str, module: "Module", strict: bool = False) -> None:
        """module in the place of another one; strict: only where there is one."""
        if not target:
            raise ValueError("set_submodule takes the name of a submodule, not an empty one")
        if not isinstance(module, Module):
            raise ValueError(f"set_submodule takes a Module, got {type(module).__name__}")
        path, _, name = target.rpartition(".")
        owner = self.get_submodule(path)
        if strict and name not in owner._modules:
            raise AttributeError(f"{type(owner).__name__} has no submodule {name!r}")
        owner.add_module(name, module)

    # State

    def state_dict(self, *, prefix: str = "", keep_vars: bool = False) -> "OrderedDict[str, Tensor]":
        """Parameters and persistent buffers by dotted name, sharing memory with the module."""
        out: OrderedDict[str, Tensor] = OrderedDict()
        for path, module in self.named_modules(remove_duplicate=False):
            start = prefix + (path + "." if path else "")
            tensors = {**module._parameters, **{k: v for k, v in module._buffers.items() if k not in module._transient}}
            for name, value in tensors.items():
                if value is not None:
                    out[start + name] = value if keep_vars else value.detach()
        return out

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> LoadResult:
        """Copy values in by name (assign: adopt the tensors). Nothing is changed unless everything fits.

        Raises RuntimeError, naming every key that is missing, unexpected (if strict) or of another shape.
        """
        own = self.state_dict(keep_vars=True)
        missing, unexpected = [k for k in own if k not in state_dict], [k for k in state_dict if k not in own]
        new = {k: as_tensor(state_dict[k]) for k in own if k in state_dict}
        wrong = [
            f"size mismatch for {k}: the shape in the state_dict is {list(v.shape)}, in the module {list(own[k].shape)}."
            for k, v in new.items()
            if v.shape != own[k].shape
        ]
        problems = wrong
        for what, keys in (("Unexpected", unexpected), ("Missing", missing)) if strict else ():
            if keys:
                quoted = ", ".join([f'"{key}"' for key in keys])
                problems = [f"{what} key(s) in state_dict: {quoted}.", *problems]
        if problems:
            raise ShapeError(f"Error(s) in loading state_dict for {type(self).__name__}:\n\t" + "\n\t".join(problems))
        for key, value in new.items():
            target = own[key]
            if assign:
                path, _, name = key.rpartition(".")
                owner = self.get_submodule(path)
                if isinstance(target, Parameter):
                    owner._parameters[name] = Parameter(value.detach(), target.requires_grad)
                else:
                    owner._buffers[name] = value.detach()
            else:
                target.detach().copy_(value.detach().to(target.dtype))
        return LoadResult(missing, unexpected)

    # Modes and conversions

    def train(self, mode: bool = True) -> Any:
        if not isinstance(mode, bool):
            raise ValueError(f"train() takes True or False, got {mode!r}")
        self.training = mode
        for module in self.children():
            module.train(mode)
        return self

    def eval(self) -> Any:
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        for p in self.parameters():
            p.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self.parameters():
            if set_to_none:
                p.grad = None
            elif p.grad is not None:
                p.grad.detach_().zero_()

    def apply(self, fn: Callable[["Module"], Any]) -> Any:
        """fn on every submodule, children first, then on this."""
        for module in self.children():
            module.apply(fn)
        fn(self)
        return self

    def to(self, *args: Any, dtype: Any = None, device: Any = None, **_: Any) -> Any:
        """Convert floating point parameters and buffers to a dtype, in place; the only device is the CPU."""
        probe = zeros(0).to(*args, dtype=dtype, device=device)
        asked = dtype is not None or any(not (a is None or isinstance(a, bool) or _names_device(a)) for a in args)
        if asked and not probe.is_floating_point():
            raise DtypeError(f"modules hold float32 or float64 parameters, not {probe.dtype}")
        if asked:
            for module in self.modules():
                for table in (module._parameters, module._buffers):
                    for value in table.values():
                        if value is not None and value.is_floating_point():
                            value.array = value.detach().to(as_dtype(probe.dtype)).array
                            if value.grad is not None:
                                value.grad.array = value.grad.detach().to(probe.dtype).array
        return self

    def float(self) -> Any:
        return self.to("float32")

    def double(self) -> Any:
        return self.to("float64")

    def half(self) -> Any:
        return self.to("float16")

    def type(self, dst_type: Any) -> Any:
        return self.to(dst_type)

    def cpu(self) -> Any:
        return self

    def cuda(self, device: Any = "cuda") -> Any:
        return self.to(device="cuda")

    def register_forward_hook(self, hook: Callable) -> Any:
        """hook(module, args, output) after forward; what it returns, if anything, replaces the output."""
        return _Handle(self._forward_hooks, hook)

    def register_forward_pre_hook(self, hook: Callable) -> Any:
        """hook(module, args) before forward; what it returns, if anything, replaces the arguments."""
        return _Handle(self._forward_pre_hooks, hook)

    def register_full_backward_hook(self, hook: Callable, prepend: bool = False) -> Any:
        """hook(module, grad_input, grad_output) once the gradients of the positional inputs are there: tuples, None for what
        is no tensor. What it returns, if anything, replaces grad_input."""
        return self._registered(self._backward_hooks, hook, prepend)

    def register_full_backward_pre_hook(self, hook: Callable, prepend: bool = False) -> Any:
        """hook(module, grad_output) before the gradient enters the module; what it returns, if anything, replaces it."""
        return self._registered(self._backward_pre_hooks, hook, prepend)

    def _registered(self, hooks: dict, hook: Callable, prepend: bool) -> Any:
        handle = _Handle(hooks, hook)
        for key in list(hooks)[:-1] if prepend else ():          # to the end, behind the new one
            hooks[key] = hooks.pop(key)
        return handle

    def extra_repr(self) -> str:
        return ""

    def _get_name(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        own = self.extra_repr().split("\n") if self.extra_repr() else []
        children = [f"({name}): " + repr(m).replace("\n", "\n  ") for name, m in self._modules.items()]
        if not children and len(own) < 2:
            return f"{self._get_name()}({''.join(own)})"
        return f"{self._get_name()}(\n  " + "\n  ".join(own + children) + "\n)"


__all__ = ["Module", "Parameter"]


class _Arguments:
    """`__signature__` of a class and of those below that keep its constructor, worked out when first asked for."""

    def __init__(self, init: Callable, arguments: Callable[[], Signature]) -> None:
        self.init, self.arguments = init, arguments

    def __get__(self, instance: Any, owner: type) -> Signature:
        if owner.__init__ is not self.init:  # type: ignore[misc]
            raise AttributeError("__signature__")
        return self.arguments()


def keeping(arguments: Callable[[], Signature], name: str, module: str, doc: str | None, *,
            keep: Callable[[Module, dict[str, Any]], None] | None = None, **methods: Callable) -> type[Module]:
    """A module of that name whose constructor takes these arguments and keeps each as an attribute, unless `keep` does it."""
    def __init__(self: Module, *args: Any, **named: Any) -> None:
        Module.__init__(self)
        given = once().bind(*args, **named)
        given.apply_defaults()
        if keep:
            keep(self, given.arguments)
            return
        for key, value in given.arguments.items():
            setattr(self, key, value)

    once = cache(arguments)
    return type(name, (Module,), {"__init__": __init__, "__signature__": _Arguments(__init__, once), "__module__": module,
                                  "__doc__": doc, **methods})
