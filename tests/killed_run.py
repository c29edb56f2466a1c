"""A run that is killed twenty times at random moments, one that is not, and two that share a folder.

Called by test_resume in a process of its own, which forks each life before torch has started any thread. A life says
when it takes a step; its death comes after a random number of them and a random wait, within a step or a save. It waits
for its death after SPAN steps, so that the number of deaths does not depend on the speed of the machine.
Usage: killed_run.py FOLDER. Prints how many lives were cut short.
"""

import os
import random
import signal
import sys
import time

import torch
import torch._dynamo  # which a first step imports: once here, and not in each life

import normcore as nc
from normcore.lab import load_dataset, train, trainable, weight_norm
from normcore.lab.training.probes import SWA, Angle

STEPS, KILLS, SPAN = 600, 20, 29
MOMENT = 0.02
"""Seconds: a few steps, or a save."""
DATA = load_dataset("digits").subset(200, 100)


def run(folder, result, span, steps):
    """One life of the run: dropout, momentum, a scheduler, ExpLR with rebases, probes with memory."""
    taken = []

    def wait_for_death(t):
        taken.append(t)
        os.write(steps, b".")
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
    torch.save({"weights": weights, "loss": torch.from_numpy(history.loss), **records}, result)


def life(folder, result, span=STEPS):
    """Start a process that runs; its number, and a pipe from which a byte comes for each step."""
    seen, steps = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            run(folder, result, span, steps)
        finally:
            os._exit(sys.exc_info()[0] is not None)
    os.close(steps)
    return child, seen


def die(folder, rng):
    """One life that is cut short."""
    child, seen = life(folder, "never written", SPAN)
    for _ in range(rng.randrange(1, SPAN)):
        os.read(seen, 1)
    time.sleep(rng.uniform(0.0, MOMENT))
    os.kill(child, signal.SIGKILL)
    os.close(seen)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main(folder):
    """Twenty deaths and one natural end, then the undisturbed run, then two at once."""
    rng = random.Random(0)
    deaths = sum(die(f"{folder}/killed", rng) for _ in range(KILLS))
    for names in (["killed"], ["whole"], ["first of two", "second of two"]):
        place = names[0] if len(names) == 1 else "shared"
        lives = [life(f"{folder}/{place}", f"{folder}/{name}.pt") for name in names]
        if any(os.waitpid(child, 0)[1] for child, _ in lives):
            sys.exit(f"the run in {place} failed")
    print(deaths)


if __name__ == "__main__":
    main(sys.argv[1])
