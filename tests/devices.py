"""A stand-in for a GPU: torch's meta device, whose tensors have no numbers, held to what CUDA demands."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OneDevice(TorchDispatchMode):
    """Refuse every operation between tensors of two devices but copies; the meta device lets some of them pass."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [
            part for part in tree_leaves((args, kwargs)) if isinstance(part, torch.Tensor) and part.ndim
        ]
        devices = {part.device.type for part in tensors}
        assert len(devices) < 2 or "copy" in str(func), f"{func} mixes {sorted(devices)}"
        return func(*args, **(kwargs or {}))
