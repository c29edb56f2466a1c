"""An accelerator without one: a device "sim" whose tensors hold their numbers on the CPU.

It is torch's PrivateUse1 slot with its Python back end, which is experimental: `AVAILABLE` says whether this torch has
it. What CUDA refuses is refused: operations between two devices (0-dimensional CPU tensors excepted, as there),
`.numpy()`, a CPU generator filling a device tensor, device indices of a CPU tensor. Every wait of the host for the
device is counted by the line of normcore that caused it. What it cannot judge: a device's own rounding, memory,
streams, CUDA graphs, GradScaler.
"""

import collections
import sys

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

NAME, aten = "sim", torch.ops.aten
AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend") and hasattr(
    torch._C, "_set_only_lift_cpu_tensors"
)
WAITS = collections.Counter()
"""(file of normcore, line, operation) -> how often the host waited there."""
READ = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.bincount.default,
    aten._linalg_eigh.default,
    aten._linalg_svd.default,
}
"""Operations whose result, or its shape, the host must know."""
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
COPIED = {aten.copy_.default, aten._to_copy.default, aten._foreach_copy_.default}
JOINED = {aten.cat.default, aten.stack.default}  # these take no 0-dimensional CPU tensor either


class Backend(getattr(backend_registration, "_DummyBackendModule", object)):
    def is_available(self):
        return True

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def manual_seed_all(self, seed):
        pass  # nothing is drawn on it

    def _is_in_bad_fork(self):
        return False

    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]


def here():
    """The innermost line of normcore on the stack."""
    frame = sys._getframe(1)
    while frame is not None and "/normcore/" not in frame.f_code.co_filename.rpartition("site-packages")[2]:
        frame = frame.f_back
    return (
        ("test", 0)
        if frame is None
        else (frame.f_code.co_filename.rpartition("/normcore/")[2], frame.f_lineno)
    )


def on_device(place):
    return place is not None and torch.device(place).type == NAME


class Sim(torch.Tensor):
    """A tensor on the device: a shell around the CPU tensor with its numbers."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, held):
        self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __tensor_flatten__(self):
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner, meta, size, stride):
        return Sim(inner["held"])

    def tolist(self):
        WAITS[(*here(), "tolist")] += 1
        return self.held.tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError(f"can't convert a device tensor to numpy: {here()}")

    __array__ = numpy

    def __reduce_ex__(self, protocol):  # a saved one is loaded onto the CPU, as with map_location="cpu"
        return self.held.__reduce_ex__(protocol)

    def __repr__(self, **kwargs):
        return f"Sim({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


def dispatch(func, args, kwargs):
    """Run one operation on the held numbers, after the questions that CUDA would ask."""
    leaves = tree_leaves((args, kwargs))
    if not on_device(kwargs.get("device")) and not any(isinstance(leaf, Sim) for leaf in leaves):
        return func(*args, **kwargs)
    _refuse(func, args, leaves)
    down = _leaves_the_device(func, args, kwargs)
    if func in READ or (down and not kwargs.get("non_blocking")):
        WAITS[(*here(), func.__name__)] += 1
    inner_args, inner_kwargs = tree_map_only(Sim, lambda t: t.held, (args, kwargs))
    if inner_kwargs.get("device") is not None:
        inner_kwargs["device"] = torch.device("cpu")
    out = func(*inner_args, **inner_kwargs)
    if torch.Tag.inplace_view in func.tags:  # the shell changes its shape as well
        with torch._C._DisableTorchDispatch():
            func(*args, **kwargs)
        return args[0]
    if down:
        return args[0] if func is aten.copy_.default else out
    shells = {id(t.held): t for t in leaves if isinstance(t, Sim)}
    return tree_map_only(torch.Tensor, lambda t: shells[id(t)] if id(t) in shells else Sim(t), out)


def _refuse(func, args, leaves):
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    host = [t for t in tensors if not isinstance(t, Sim)]
    if any(isinstance(leaf, torch.Generator) and leaf.device.type == "cpu" for leaf in leaves):
        raise RuntimeError(f"a CPU generator cannot fill a device tensor: {func} at {here()}")
    if func in INDEXED:
        if not isinstance(args[0], Sim):
            raise RuntimeError(f"device indices of a CPU tensor: {func} at {here()}")
        for index in args[1]:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                WAITS[(*here(), "index by a mask")] += 1
    elif func not in COPIED:
        in_place = func.__name__.split(".")[0].endswith("_") and not isinstance(args[0], (Sim, list, tuple))
        strangers = host if in_place else [t for t in host if t.ndim or func in JOINED]
        if strangers:
            shapes = [tuple(t.shape) for t in strangers]
            raise RuntimeError(f"tensors on two devices: {func} at {here()}, on the CPU {shapes}")


def _leaves_the_device(func, args, kwargs):
    if func is aten._to_copy.default:
        device = kwargs.get("device")
        return isinstance(args[0], Sim) and device is not None and not on_device(device)
    return func is aten.copy_.default and not isinstance(args[0], Sim)


class Device(TorchDispatchMode):
    """Within it, tensors can be made on the device and moved to it."""

    def __enter__(self):
        WAITS.clear()
        torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(..., device=) is seen here too
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(False)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


if (
    AVAILABLE and torch._C._get_privateuse1_backend_name() != NAME
):  # before the first backward pass of the process, for autograd counts the devices then
    backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())
