"""The same script on one device or, under `torchrun`, on many: a few calls that do nothing in a single process.

`start` joins the processes, `wrap` lets them average their gradients, `shard` gives each its part of every batch,
`mean_over_ranks` lets them see the same loss. For a mean loss over equal parts the average of the gradients is the
gradient on the whole batch, so that the run is the one of a single process.
"""

import atexit
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from normcore.checks import require_device, require_type

Batch = tuple[Tensor, Tensor]


def start() -> torch.device:
    """Join the processes that `torchrun` started (RANK, WORLD_SIZE, LOCAL_RANK), and return this one's device.

    That is GPU number LOCAL_RANK (0 in a single process) where there are GPUs, which talk over nccl, else the processor,
    with gloo. CUDA_VISIBLE_DEVICES="" hides GPUs. The group is left when the interpreter ends.

    Raises:
        ValueError: a machine has more processes than GPUs.

    Example:
        >>> start().type in ("cpu", "cuda")  # a single process
        True

    """
    gpus, place = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if gpus and place >= gpus:
        need = f"below the number of GPUs, {gpus}"
        raise ValueError(f"LOCAL_RANK must be {need}, got {place}: start fewer processes")
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not _joined():
        if gpus:
            torch.cuda.set_device(place)
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
        atexit.register(lambda: dist.destroy_process_group() if _joined() else None)
    return torch.device("cuda", place) if gpus else torch.device("cpu")


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def is_main() -> bool:
    """Whether this process is the first of its group, the one that saves and prints; True in a single process."""
    return not _joined() or dist.get_rank() == 0


def wrap(model: nn.Module, device: str | torch.device | None = None) -> nn.Module:
    """Let all processes train one model: their gradients are averaged, and they start from the first one's weights.

    The model is moved to the device, in place, and wrapped in torch's DistributedDataParallel; in a single process it
    is returned as it is. Make optimizer and `ExpLR` from what is returned; parameter names then begin with "module.".

    On GPUs BatchNorm becomes SyncBatchNorm, whose statistics are those of the whole batch. On processors torch has none:
    there BatchNorm keeps the statistics of each process's part, which is another network than the one of a single
    process. Other norms look at one example at a time.

    Example:
        >>> net = torch.nn.Linear(2, 3)
        >>> wrap(net) is net  # a single process
        True

    """
    require_type("model", model, nn.Module, "a torch.nn.Module")
    if device is not None:
        require_device(device)
        model = model.to(device)
    if not _joined():
        return model
    place = next(model.parameters()).device
    if place.type != "cuda":
        return DistributedDataParallel(model)
    return DistributedDataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(model), device_ids=[place])


def shard(batches: Sequence[Batch]) -> Sequence[Batch]:
    """Give each process its equal part of every batch: of n processes, number r takes the r-th n-th of the rows.

    Batches are cut when asked for; one whose size is not a multiple of n is a ValueError then. Every process makes the
    whole batch, so that draws and augmentation are those of a single process, where `batches` itself is returned.

    Example:
        >>> batches = [(torch.arange(4.0), torch.arange(4))]
        >>> shard(batches) is batches  # a single process
        True

    """
    return Part(batches, dist.get_rank(), dist.get_world_size()) if _joined() else batches


class Part(Sequence[Batch]):
    """The part of one process, number `rank` of `ranks`, in a sequence of batches."""

    def __init__(self, batches: Sequence[Batch], rank: int, ranks: int) -> None:
        self.batches, self.rank, self.ranks = batches, rank, ranks

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Part(self.batches[index], self.rank, self.ranks)
        x, y = self.batches[index]
        if len(x) % self.ranks:
            need = f"a multiple of the {self.ranks} processes"
            raise ValueError(f"batches must have a size that is {need}, got {len(x)}")
        return tuple(whole.tensor_split(self.ranks)[self.rank] for whole in (x, y))


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Average a floating-point tensor over the processes: all must ask, with the same shape, and get the same bits.

    A new tensor; in a single process the tensor itself. One of another type has no mean of that type: a TypeError.

    Example:
        >>> mean_over_ranks(torch.tensor(0.5))
        tensor(0.5000)

    """
    require_type("tensor", tensor, Tensor, "a tensor")
    if not tensor.is_floating_point():
        raise TypeError(f"tensor must be floating-point, got {tensor.dtype}")
    if not _joined():
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def from_main(value: Any) -> Any:
    """Give all processes the first one's value (plain numbers and names); in a single process the value itself."""
    box = [value]
    if _joined():
        dist.broadcast_object_list(box, src=0)
    return box[0]
