"""Digits on as many processes as there are: the lab's loop, under `wrap` and `shard`. Usage: digits_on_two.py FOLDER."""

import sys
from pathlib import Path

import torch

import normcore as nc
from normcore.lab import (
    SWA,
    Angle,
    accuracy_on,
    direction,
    load_dataset,
    logits,
    loss_on,
    mlp,
    train,
    trainable,
    weight_norm,
)
from normcore.lab.training.processes import from_main, is_main, mean_over_ranks, shard, start, wrap

STEPS = 40
DATA = load_dataset("digits", dtype=torch.float64, device="cpu")
X, Y = DATA.x_test[:50], DATA.y_test[:50]


def make(seed=0):
    net = wrap(mlp((64, 32, 32, 10), eps=1e-2, seed=seed, dtype=torch.float64), "cpu")
    groups = [{"params": trainable(net), "scale_invariant": True}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=1e-2)
    return net, optimizer, nc.ExpLR(optimizer, net)


def end(net, history):
    return {
        "direction": direction(net),
        "logits": logits(net, X),
        "loss": torch.from_numpy(history.loss),
        "diverged_at": history.diverged_at,
        **{name: torch.from_numpy(values) for name, values in history.records.items()},
    }


def probes():
    read = {"accuracy": accuracy_on(X, Y), "test": loss_on(X, Y)}
    return {"norm": weight_norm, "angle": Angle(), "swa": SWA(X, Y), **read}


def main(folder):
    torch.set_num_threads(1)
    start()
    batches = shard(DATA.batches(STEPS, 32, crop=1))
    net, optimizer, exp_lr = make()
    options = {"scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS), "exp_lr": exp_lr}
    results = {"whole": end(net, train(net, optimizer, batches, probes=probes(), every=8, **options))}

    for steps, seed in ((17, 0), (STEPS, 0)):  # a run that ends early, and goes on in its folder
        net, optimizer, exp_lr = make(seed)
        saved = {"exp_lr": exp_lr, "checkpoint": folder / "run", "checkpoint_every": 5}
        history = train(net, optimizer, batches[:steps], **saved)
    results["resumed"] = end(net, history)
    net, optimizer, exp_lr = make()
    results["constant"] = end(net, train(net, optimizer, batches))

    net, optimizer, _ = make(seed=1 if is_main() else 2)  # the first process has the say
    results["seeds"] = end(net, train(net, optimizer, batches[:10]))

    bad = [(a.clone(), b) for a, b in DATA.batches(10, 32)]
    bad[7][0][-1] = torch.inf  # in the part of the last process
    net, optimizer, _ = make()
    results["bad"] = end(net, train(net, optimizer, shard(bad)))

    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    mine = torch.tensor([float(rank), 1.0])
    calls = {"main": is_main(), "mean": mean_over_ranks(mine), "mine": mine}
    results["calls"] = calls | {"from_main": from_main({"rank": rank})}
    try:
        results["uneven"] = tuple(shard(DATA.batches(1, 33))[0][0].shape)
    except ValueError as error:
        results["uneven"] = str(error)
    torch.save(results, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
