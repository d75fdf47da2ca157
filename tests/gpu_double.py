"""A test double of a GPU, for machines without one.

Inside `gpu_double`, ``device="cuda"`` makes `DoubleTensor`s: they report ``cuda:0`` and hold their
values on the CPU. Values, control flow and gradients are real, and noise comes from the CPU's
generator, so that every result must equal the CPU's up to rounding. The double

* refuses what a GPU refuses: an operation on tensors of two devices, numpy, and cuDNN's GRU from an
  initial state that is not contiguous; its gradient has no derivative;
* counts each time that the host waits for the GPU, by the line of pyrodyn that makes it wait;
* lists the operations, which a captured CUDA graph would replay.

It cannot show the rounding of cuDNN and cuBLAS, memory, speed, asynchronous errors, Lightning's
choice of hardware, or an operation that CUDA has no kernel for.
"""

import collections
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

import pyrodyn

GPU = torch.device("cuda", 0)
PACKAGE = str(Path(pyrodyn.__file__).parent)

WAITING = {
    "_linalg_check_errors",
    "_linalg_eigh",
    "_linalg_eigvals",
    "_linalg_svd",
    "_local_scalar_dense",
    "_unique2",
    "equal",
    "linalg_eig",
    "linalg_lstsq",
    "linalg_pinv",
    "masked_select",
    "nonzero",
    "repeat_interleave",
}
"""Operations whose result, shape or error status the host reads from the GPU."""

INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "index_fill_"}


class Operation(NamedTuple):
    """One operation on the GPU: what a captured graph would replay unchanged."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    numbers: tuple[bool | int | float, ...]


@dataclasses.dataclass
class Record:
    """What happened on the double.

    Attributes:
        waits: how often the host waited, by operation and by ``file:line`` of pyrodyn.
        operations: everything that was computed on the GPU, in order.
        gru_precisions: precisions in which cuDNN was asked to multiply.
    """

    waits: collections.Counter[tuple[str, str]] = dataclasses.field(
        default_factory=collections.Counter
    )
    operations: list[Operation] = dataclasses.field(default_factory=list)
    gru_precisions: set[str] = dataclasses.field(default_factory=set)

    def clear(self) -> None:
        self.waits.clear()
        self.operations.clear()
        self.gru_precisions.clear()

    def wait(self, operation: str) -> None:
        self.waits[operation, _line_of_pyrodyn()] += 1

    def waits_outside(self, *files: str) -> dict[tuple[str, str], int]:
        """The waits that were not caused by these files of pyrodyn."""
        return {
            wait: count for wait, count in self.waits.items() if wait[1].split(":")[0] not in files
        }


def _line_of_pyrodyn() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        # A mode of pyrodyn's own passes on every function.
        if code.co_filename.startswith(PACKAGE) and code.co_name != "__torch_function__":
            return f"{code.co_filename[len(PACKAGE) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside pyrodyn"


record = Record()
"""Of the double that is active."""

_factory_devices: list[bool] = []
"""For every call in progress, whether tensors that it creates from nothing lie on the GPU."""


class DoubleTensor(Tensor):
    """A tensor that reports ``cuda:0``; ``values`` lie on the CPU."""

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @staticmethod
    def __new__(cls, values: Tensor, requires_grad: bool = False) -> "DoubleTensor":
        # For autograd's engine, which would look for a driver, it lies on the CPU.
        made = Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device="cpu",
            requires_grad=requires_grad,
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatched(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"DoubleTensor({self.values!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As a tensor of the CPU, where checkpoints are read to."""
        record.wait("writing to a file")
        return self.values.detach().__reduce_ex__(protocol)


def _on_gpu(given: Any) -> bool:
    return any(isinstance(leaf, DoubleTensor) for leaf in tree_flatten(given)[0])


# ----------------------------------------------------------------------- operations


def _dispatched(func: Any, args: Any, kwargs: Any) -> Any:
    """Run one operation of ATen on the values of its arguments."""
    name = func.overloadpacket.__name__
    leaves, structure = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    doubles = [tensor for tensor in tensors if isinstance(tensor, DoubleTensor)]
    is_on_gpu = bool(doubles) if tensors else _factory_devices[-1:] == [True]
    if 0 < len(doubles) < len(tensors):
        is_on_gpu = _mixed(func, name, args, tensors)
    if is_on_gpu:
        numbers = tuple(leaf for leaf in leaves if isinstance(leaf, bool | int | float))
        shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        record.operations.append(Operation(str(func), shapes, numbers))
        if name in WAITING or _selects_by_mask(name, args):
            record.wait(name)
    plain = [leaf.values if isinstance(leaf, DoubleTensor) else leaf for leaf in leaves]
    plain_args, plain_kwargs = tree_unflatten(plain, structure)
    if plain_kwargs.get("device") is not None:
        plain_kwargs["device"] = torch.device("cpu")
    result = func(*plain_args, **plain_kwargs)
    if not is_on_gpu:
        return result
    # An operation in place returns the tensor that it was given.
    given = {id(double.values): double for double in doubles}

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or isinstance(leaf, DoubleTensor):
            return leaf
        return given[id(leaf)] if id(leaf) in given else DoubleTensor(leaf)

    return tree_map(wrapped, result)


def _mixed(func: Any, name: str, args: Any, tensors: list[Tensor]) -> bool:
    """Whether the result of an operation on both devices lies on the GPU; refuse most of them."""
    if name == "copy_":
        record.wait("copy between devices")
        return isinstance(args[0], DoubleTensor)
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, DoubleTensor)]
    if name in INDEXING and isinstance(args[0], DoubleTensor):
        record.wait("copy of an index to the GPU")
    elif not (torch.Tag.pointwise in func.tags and all(tensor.ndim == 0 for tensor in on_cpu)):
        shapes = [tuple(tensor.shape) for tensor in on_cpu]
        raise RuntimeError(f"{func} was given tensors of two devices; on the CPU: {shapes}")
    return True


def _selects_by_mask(name: str, args: Any) -> bool:
    """Whether an index is a mask whose entries must be counted; to fill in a constant, not."""
    if name not in INDEXING:
        return False
    is_filled = "put" in name and args[2].numel() == 1
    masks = [leaf for leaf in tree_flatten(args[1])[0] if isinstance(leaf, Tensor)]
    return not is_filled and any(mask.dtype == torch.bool for mask in masks)


class _Operations(TorchDispatchMode):
    """Sees the operations that create tensors from nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatched(func, args, kwargs or {})


class _CuDNN(torch.autograd.Function):
    """The GRU of cuDNN."""

    @staticmethod
    def forward(ctx: Any, settings: Any, *given: Tensor) -> tuple[Tensor, ...]:
        ctx.given = [tensor.values.detach().requires_grad_() for tensor in given]
        with torch.enable_grad(), torch._C._DisableTorchDispatch():
            ctx.results = torch.gru(ctx.given[0], ctx.given[1], ctx.given[2:], *settings)
        return tuple(DoubleTensor(result.detach()) for result in ctx.results)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch._C._DisableTorchDispatch():
            found = torch.autograd.graph._engine_run_backward(
                ctx.results,
                tuple(gradient.values for gradient in gradients),
                True,
                False,
                tuple(ctx.given),
                allow_unreachable=True,
                accumulate_grad=False,
            )
        return None, *map(DoubleTensor, found)


class _Moved(torch.autograd.Function):
    """A copy of a tensor on the other device."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, to_gpu: bool) -> Tensor:
        ctx.to_gpu = to_gpu
        if to_gpu:
            return DoubleTensor(tensor.detach().clone())
        return tensor.values.detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (gradient.values if ctx.to_gpu else DoubleTensor(gradient)), None


# ------------------------------------------------------------------ torch's functions


class _Functions(TorchFunctionMode):
    """Sees the functions of torch before they become operations."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, first = dict(kwargs or {}), args[0] if args else None
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.type_as):
            wanted = {Tensor.cpu: ("cpu",), Tensor.cuda: ("cuda",)}.get(func)
            is_waiting = not kwargs.pop("non_blocking", False)
            return _moved(first, wanted or (*args[1:], *kwargs.values()), is_waiting)
        if isinstance(first, DoubleTensor) and func in SPECIAL:
            return SPECIAL[func](*args, **kwargs)
        is_on_gpu = _on_gpu((args, kwargs)) and func is not torch.tensor
        if kwargs.get("device") is not None:
            is_on_gpu = torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = "cpu"
            if is_on_gpu and func in (torch.tensor, torch.as_tensor):
                record.wait(func.__name__)
                return DoubleTensor(func(*args, **kwargs))
        with _creating(is_on_gpu):
            return func(*args, **kwargs)


@contextlib.contextmanager
def _creating(is_on_gpu: bool) -> Iterator[None]:
    _factory_devices.append(is_on_gpu)
    try:
        yield
    finally:
        _factory_devices.pop()


def _moved(tensor: Tensor, wanted: tuple[Any, ...], is_waiting: bool) -> Tensor:
    """The tensor with the dtype and on the device among the arguments of `Tensor.to`."""
    wanted = tuple(
        part
        for each in wanted
        for part in ((each.dtype, each.device) if isinstance(each, Tensor) else (each,))
    )
    for dtype in (each for each in wanted if isinstance(each, torch.dtype)):
        if dtype != tensor.dtype:
            with _creating(isinstance(tensor, DoubleTensor)):
                tensor = torch.ops.aten._to_copy(tensor, dtype=dtype)
    for device in (torch.device(each) for each in wanted if isinstance(each, str | torch.device)):
        if (device.type == "cuda") != isinstance(tensor, DoubleTensor):
            if is_waiting:
                record.wait("copy between devices")
            tensor = _Moved.apply(tensor, device.type == "cuda")
    return tensor


def _no_numpy(*_: Any) -> None:
    raise TypeError("can't convert cuda:0 device type tensor to numpy")


def _gru(inputs: Tensor, state: Tensor, weights: Any, *settings: Any) -> tuple[Tensor, ...]:
    record.gru_precisions.add(torch.backends.cudnn.rnn.fp32_precision)
    if not state.is_contiguous():
        raise RuntimeError("rnn: hx is not contiguous")
    return _CuDNN.apply(settings, inputs, state, *weights)


def _tolist(tensor: DoubleTensor) -> Any:
    record.wait("tolist")
    return tensor.values.tolist()


def _new_tensor(tensor: DoubleTensor, *args: Any, **kwargs: Any) -> DoubleTensor:
    record.wait("new_tensor")
    return DoubleTensor(tensor.values.new_tensor(*args, **kwargs))


def _deepcopy(tensor: DoubleTensor, memo: dict[int, Any]) -> DoubleTensor:
    made = DoubleTensor(tensor.values.clone(), tensor.requires_grad)
    made._is_param = getattr(tensor, "_is_param", False)
    return memo.setdefault(id(tensor), made)


SPECIAL: dict[Any, Callable[..., Any]] = {
    Tensor.numpy: _no_numpy,
    Tensor.__array__: _no_numpy,
    Tensor.tolist: _tolist,
    Tensor.new_tensor: _new_tensor,
    Tensor.__deepcopy__: _deepcopy,
    torch.gru: _gru,
}


@contextlib.contextmanager
def gpu_double() -> Iterator[Record]:
    """Make ``cuda`` a device; yields the record of waits and operations, empty at first."""
    record.clear()
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(nn.RNNBase, "flatten_parameters", lambda self: None)
        # Otherwise torch would call backward outside the mode, and with it handwritten gradients.
        patch.setattr(torch.autograd, "has_torch_function", lambda tensors: False)
        patch.setattr(torch.autograd, "grad", _creating_like_first(torch.autograd.grad))
        backward = _creating_like_first(torch.autograd.backward)
        patch.setattr(Tensor, "backward", lambda self, *args, **kw: backward(self, *args, **kw))
        # Its part in C++ sees the device that autograd sees.
        module_to = nn.Module.to
        patch.setattr(
            nn.Module, "to", lambda self, *args, **kw: module_to(self, *_plain(args), **kw)
        )
        # Its part in C++ sees the device that autograd sees.
        for module in (nn.utils.clip_grad, sys.modules["torch.optim.optimizer"]):
            patch.setattr(module, "_group_tensors_by_device_and_dtype", _grouped)
        patch.setattr(torch.cuda, "Event", _Event)
        # A parameter that is moved remains the same object, as on a GPU.
        patch.setattr(nn.Module, "_apply", _swapping(nn.Module._apply))
        lifts = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        stack.enter_context(_Functions())
        stack.enter_context(_Operations())
        yield record


def _plain(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of `nn.Module.to`, with a tensor replaced by its device and dtype."""
    if args and isinstance(args[0], DoubleTensor):
        return args[0].device, args[0].dtype
    return args


def _creating_like_first(work: Callable[..., Any]) -> Callable[..., Any]:
    """A function that creates tensors where its first argument lies."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with _creating(_on_gpu(args[0])):
            return work(*args, **kwargs)

    return run


def _grouped(lists: list[list[Tensor]], *_: Any) -> dict[Any, Any]:
    """The tensors of a model, all on one device and of one dtype."""
    first = lists[0][0]
    return {(first.device, first.dtype): (lists, list(range(len(lists[0]))))}


class _Event:
    """An event, which on the double has always happened."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


def _swapping(work: Callable[..., Any]) -> Callable[..., Any]:
    """A function that exchanges the contents of parameters instead of setting ``.data``."""

    def run(*args: Any, **kwargs: Any) -> Any:
        previous = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return work(*args, **kwargs)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(previous)

    return run
