"""A run that is killed twenty times at random moments, beside one that is not.

Called by test_resume in a process of its own, which forks each life before torch has started any thread. A life waits for
its death after SPAN steps, so that the number of deaths does not depend on the speed of the machine.
Usage: killed_run.py FOLDER. Prints how many lives were cut short.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import normcore as nc
from normcore.lab import load_dataset, train, trainable, weight_norm
from normcore.lab.training.probes import SWA, Angle

STEPS, KILLS, SPAN = 1500, 20, 70
DATA = load_dataset("digits").subset(200, 100)


def run(folder, span=STEPS):
    """One life of the run: dropout, momentum, a scheduler, ExpLR with rebases, probes with memory."""
    taken = []

    def wait_for_death(t):
        taken.append(t)
        while len(taken) > span:
            time.sleep(1)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(64, 24, bias=False),
        torch.nn.LayerNorm(24, elementwise_affine=False),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(24, 10),
    )
    groups = [{"params": [net[1].weight], "scale_invariant": True}, {"params": list(net[5].parameters())}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    history = train(
        net,
        optimizer,
        DATA.batches(STEPS, 16, crop=1),
        scheduler=scheduler,
        exp_lr=nc.ExpLR(optimizer, net),
        probes={"norm": weight_norm, "angle": Angle(), "swa": SWA(DATA.x_test, DATA.y_test)},
        every=50,
        before_step=wait_for_death,
        checkpoint=folder,
        checkpoint_every=7,
    )
    weights = torch.cat([p.detach().flatten() for p in trainable(net)])
    records = {name: torch.from_numpy(values) for name, values in history.records.items()}
    torch.save({"weights": weights, "loss": torch.from_numpy(history.loss), **records}, f"{folder}.pt")


def life(folder, span=STEPS):
    """Start a process that runs; its number."""
    child = os.fork()
    if child == 0:
        try:
            run(folder, span)
        finally:
            os._exit(sys.exc_info()[0] is not None)
    return child


def main(folder):
    """Twenty deaths and one natural end, then the undisturbed run."""
    rng, deaths = random.Random(0), 0
    killed, whole = str(Path(folder) / "killed"), str(Path(folder) / "whole")
    while deaths < KILLS:
        child = life(killed, SPAN)
        time.sleep(rng.uniform(0.05, 0.5))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit("a life ended by itself")
        deaths += 1
    for name in (killed, whole):
        _, status = os.waitpid(life(name), 0)
        if status:
            sys.exit(f"the run in {name} failed")
    print(deaths)


if __name__ == "__main__":
    main(sys.argv[1])
