"""The recipes of book/trainers.md on two processes, under torchrun; usage: two_trainers.py FOLDER.

Each process leaves a file there: (trainer, attempt) -> what its run gave.
"""

import sys
from pathlib import Path

import test_trainers as one
import torch
import torch.distributed as dist

import normcore as nc

TRAINERS = {
    "Hugging Face": lambda folder, how: one.hugging_face(folder, how)[0],
    "accelerate": lambda folder, how: one.accelerated(folder, how)[0],
    "Lightning": lambda folder, how: one.lightning(folder, how, devices=2, strategy="ddp")[0],
}
ATTEMPTS = {"plain": one.plain, "ExpLR": nc.ExpLR, "without the model": one.without_the_model}


def flat_weights(folder):
    """What ExpLR says to the optimizer of a model that FSDP's first edition has flattened."""
    model = torch.distributed.fsdp.FullyShardedDataParallel(one.net().float(), device_id=torch.device("cpu"))
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "scale_invariant": True}], lr=0.1)
    try:
        nc.ExpLR(optimizer, model)
    except TypeError as error:
        return str(error)


def main(folder):
    results = {}
    for trainer, train in TRAINERS.items():
        for attempt, how in ATTEMPTS.items():
            results[trainer, attempt] = train(Path(folder) / f"{trainer} {attempt}", how)
        assert dist.get_world_size() == 2
    results["flat"] = flat_weights(folder)
    torch.save(results, Path(folder) / f"{dist.get_rank()}.pt")
    dist.barrier()


if __name__ == "__main__":
    main(sys.argv[1])
