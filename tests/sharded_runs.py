"""NormMonitor and the lab's probes on one process and on two, under FSDP2.

Imported by test_sharded for the runs of a single process, and started by `launch`, once, under torchrun for the
runs of two. Usage: sharded_runs.py FOLDER; each process leaves a file of results there.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from nets import BATCH, CLASSES, DIM, batches, groups
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn.functional import cross_entropy
from two_processes import PROBE, engine_of, part, rank, whole

import normcore as nc
from normcore import lab
from normcore.lab.training.probes import SWA, Angle, accuracy_on, loss_on
from normcore.norm_dynamics import readings
from normcore.sharded import part_of_gradient, reshard

STEPS, EVERY, WIDTH, WAITING = 16, 3, 7, 2
LABELS = torch.arange(BATCH) % CLASSES
MAKERS = {
    "momentum": lambda g: torch.optim.SGD(g, lr=0.1, weight_decay=0.1, momentum=0.9),
    "adamw": lambda g: torch.optim.AdamW(g, lr=0.01, weight_decay=0.3),
    "adamw, fused": lambda g: torch.optim.AdamW(g, lr=0.01, weight_decay=0.3, fused=True),
    "exp_lr": lambda g: torch.optim.SGD(g, lr=0.1, weight_decay=0.5, momentum=0.5),
}
LAYOUTS = ("fsdp", "root", "kept", "mixed", "hybrid", "columns")
"""Those of two_processes; then one that has every weight twice, and one that cuts a weight into columns."""


class Head(nn.Module):
    """Weights of three rows, and of a single one: of two processes the second holds one row, and none."""

    def __init__(self):
        super().__init__()
        self.logits, self.gate = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, 1)

    def forward(self, x):
        return self.logits(x) * (2.0 + self.gate(x))


def net(seed=0):
    """Two layers of seven rows, normalized, and the head."""
    torch.manual_seed(seed)
    sizes = ((DIM, WIDTH), (WIDTH, WIDTH))
    layers = [(nn.Linear(a, b, bias=False), nn.LayerNorm(b), nn.ReLU()) for a, b in sizes]
    return nn.Sequential(*layers[0], *layers[1], Head()).double()


def spread(engine, model):
    """The model, sharded in one of the layouts."""
    if engine == "hybrid":
        return fully_shard(model, mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "parts")))
    if engine == "columns":
        cut = model[0].weight
        place = lambda p: Shard(1) if p is cut else None  # noqa: E731
        return fully_shard(model, mesh=init_device_mesh("cpu", (2,)), shard_placement_fn=place)
    return engine_of(engine, model)


def probes(optimizer):
    """All of them; the first leaves whole weights behind, under FSDP."""
    return {
        "logits": lab.logits_on(PROBE),
        "vector": lab.weight_vector,
        "direction": lab.direction,
        "norm": lab.weight_norm,
        "angle": Angle(),
        "effective_lr": lambda model: nc.effective_lr(optimizer)[0],
        "accuracy": accuracy_on(PROBE, LABELS),
        "loss": loss_on(PROBE, LABELS),
    }


def local_norm(model):
    """What a process would take for the norm if it looked at its own part."""
    held = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
    return float(sum(p.detach().square().sum() for p in held).sqrt())


def run(name, engine="single"):
    """Train; what the monitor logs and the probes read at times, and the norm of the part."""
    model = spread(engine, net())
    optimizer = MAKERS[name](groups(model))
    lab.logits(model, PROBE)  # the monitor comes at an odd moment, in which whole weights are registered
    exp_lr = nc.ExpLR(optimizer, model) if name == "exp_lr" else None
    monitor = nc.NormMonitor(optimizer, model, horizon=10, exp_lr=exp_lr)
    reads, seen, logs, local = probes(optimizer), [], [], []
    for t, batch in enumerate(batches(STEPS)):
        if t == STEPS // 2:  # goes on from a saved state, attached while FSDP registers whole weights
            state = monitor.state_dict()
            monitor.close()
            monitor = nc.NormMonitor(optimizer, model, horizon=10, exp_lr=exp_lr)
            monitor.load_state_dict(state)
        optimizer.zero_grad()
        x, y = part(batch) if engine != "single" else batch
        cross_entropy(model(x), y).backward()
        optimizer.step()
        if t % EVERY == EVERY - 1:
            local.append(local_norm(model))
            seen.append(
                {key: torch.as_tensor(read(model), dtype=torch.float64) for key, read in reads.items()}
            )
            logs.append(monitor.log())
    return {
        "probes": {key: torch.stack([values[key] for values in seen]) for key in reads},
        "logs": logs,
        "state": monitor.state_dict(),
        "effective_lr": nc.effective_lr(optimizer) if exp_lr is None else [],
        "local": local,
    }


def half_precision():
    """Weights of float32 that compute in bfloat16: the norm after a look at the logits, and the true one."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    model = fully_shard(net().float(), mesh=init_device_mesh("cpu", (2,)), mp_policy=policy)
    true = torch.cat([whole(p).flatten() for p in model.parameters()])
    logits = lab.logits(model, PROBE.float())
    kept = torch.cat([whole(p).float().flatten() for p in model.parameters()])
    return {"true": true, "kept": kept, "logits": logits, "vector": lab.weight_vector(model)}


def unlike_gradient():
    """What is read of a gradient that is laid out otherwise than its weight."""
    mesh = init_device_mesh("cpu", (2,))
    weight = nn.Parameter(DTensor.from_local(torch.ones(2), mesh, [Replicate()]))
    weight.grad = DTensor.from_local(torch.full((2,), 1.0 + rank()), mesh, [Partial()])
    return part_of_gradient(weight)


class Other(nn.Module):
    """A module with a `reshard` of its own, which is no business of ours."""

    def reshard(self):
        raise AssertionError


def others():
    """Whether they are left alone."""
    reshard(nn.Sequential(Other()))
    return "quiet"


def averaged():
    """What SWA says of a sharded model."""
    try:
        SWA(PROBE, LABELS)(spread("root", net()))
    except TypeError as error:
        return str(error)
    return "quiet"


def main(folder):
    """All runs of two processes."""
    torch.set_num_threads(1)
    if not dist.is_initialized():  # by a script before this one
        dist.init_process_group("gloo")
    readings.WAITING = WAITING  # readings are also worked up between two logs
    results = {(name, "fsdp"): run(name, "fsdp") for name in MAKERS}
    results |= {("momentum", engine): run("momentum", engine) for engine in LAYOUTS if engine != "fsdp"}
    results["sizes"] = [p.to_local().numel() for p in spread("fsdp", net()).parameters()]
    results["others"] = others()
    results["half"], results["gradient"], results["swa"] = half_precision(), unlike_gradient(), averaged()
    torch.save(results, folder / f"{rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
