"""ExpLR on one process and on two, under DDP and under FSDP2; plain torch around it.

Imported by test_optimizer_distributed for the runs of a single process, and started by `launch`, once, under
torchrun for the runs of two. Usage: two_processes.py FOLDER; each process leaves a file of results there.
"""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from nets import BATCH, batches, groups, net
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import SGD, AdamW

import normcore as nc

STEPS, CONTROL = 24, 12
PROBE = next(batches(1, seed=99))[0]
HARD = dict(lr=0.1, weight_decay=1e-2, momentum=0.9)


@dataclass(frozen=True)
class Case:
    """A net, an optimizer and what is special about the run."""

    norm: str
    make: Callable
    clip: float | None = None
    overflow: tuple = ()


CASES = {
    "layer": Case("layer", lambda g: SGD(g, **HARD)),
    "group, foreach, nesterov": Case("group", lambda g: SGD(g, foreach=True, nesterov=True, **HARD)),
    "fused": Case("layer", lambda g: SGD(g, fused=True, **HARD)),
    "batch": Case("batch", lambda g: SGD(g, **HARD)),
    "rebases": Case("group", lambda g: SGD(g, lr=0.1, weight_decay=0.5, momentum=0.5)),
    "resets": Case("layer", lambda g: SGD(g, lr=0.1, weight_decay=0.3, momentum=0.9)),
    "adamw, foreach": Case("layer", lambda g: AdamW(g, lr=0.01, weight_decay=0.3, foreach=True)),
    "adamw, fused": Case("group", lambda g: AdamW(g, lr=0.01, weight_decay=0.3, fused=True)),
    "clip": Case("layer", lambda g: SGD(g, **HARD), clip=0.5),
    "overflow": Case("layer", lambda g: SGD(g, **HARD), overflow=(7, 8)),
}
RESTARTED = ("group, foreach, nesterov", "adamw, foreach", "batch")
"""Cases that save in the middle, and go on with another net that loads."""

LAYOUTS = ("root", "kept", "mixed")
"""Ways of sharding beside the usual one, in which torch registers whole weights at odd moments, or some only."""


def engine_of(engine, model):
    """The model, wrapped or sharded."""
    if engine == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if engine in ("fsdp", "root", "kept", "mixed"):
        options = {"mesh": init_device_mesh("cpu", (2,))}
        if engine == "kept":
            options["reshard_after_forward"] = False
        if engine == "mixed":
            options["ignored_params"] = {model[3].weight}
            model[3].weight.register_post_accumulate_grad_hook(average)
        if engine in ("fsdp", "kept"):
            fully_shard(model[0], **options), fully_shard(model[3], **options)
        fully_shard(model, **options)
    return model


def average(parameter):
    """Average the gradient of a parameter that nobody shards or wraps."""
    dist.all_reduce(parameter.grad)
    parameter.grad.div_(dist.get_world_size())


def inner(model):
    """The net inside."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def build(case, engine, *, seed=0):
    """A net with an eps that matters, and its optimizer."""
    model = engine_of(engine, net(case.norm, eps=1e-2, seed=seed))
    return model, case.make(groups(inner(model)))


def rank():
    """Number of this process; None in a single one."""
    return dist.get_rank() if dist.is_initialized() else None


def part(batch):
    """This process's half of a batch, or all of it."""
    half, r = BATCH // 2, rank()
    return batch if r is None else tuple(t[r * half : (r + 1) * half] for t in batch)


def backward(model, batch, case, scale):
    """Gradients of the mean loss, scaled.

    BatchNorm of a single process sees the halves one by one, as two processes do, and keeps the running
    statistics of the first.
    """
    if case.norm != "batch" or rank() is not None:
        scale(nn.functional.cross_entropy(model(batch[0]), batch[1])).backward()
        return
    half, kept = BATCH // 2, {name: b.clone() for name, b in model.named_buffers()}
    for rows in (slice(half, None), slice(half)):
        for name, b in model.named_buffers():
            b.copy_(kept[name])
        scale(nn.functional.cross_entropy(model(batch[0][rows]), batch[1][rows]) / 2).backward()


def advance(model, optimizer, exp_lr, case, start=0, stop=STEPS, *, each=None):
    """Train from step `start` to `stop`; the norms that clipping saw."""
    norms = []
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=bool(case.overflow))
    for t, batch in enumerate(batches(stop)):
        if t < start:
            continue
        if each is not None:
            each(t)
        optimizer.zero_grad()
        factor = torch.inf if t in case.overflow and rank() in (None, 1) else 1.0
        backward(model, part(batch), case, lambda loss, factor=factor: scaler.scale(loss * factor))
        if case.clip is not None:
            norms.append(float(clip(model, exp_lr, case.clip)))
        scaler.step(optimizer)
        scaler.update()
    return norms


def is_sharded(tensor):
    """Whether this is one process's part of a tensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor):
    """A detached copy of the whole tensor."""
    return (tensor.full_tensor() if is_sharded(tensor) else tensor).detach().clone()


def clip(model, exp_lr, threshold):
    """Clip in the units of the run with weight decay."""
    if exp_lr is None:
        return nn.utils.clip_grad_norm_(model.parameters(), threshold)
    return whole(exp_lr.clip_grad_norm_(threshold))


def result(model, optimizer, exp_lr=None, **extra):
    """What a run ends with: the function and where it stands."""
    tagged, rest = (torch.cat([whole(p).flatten() for p in g["params"]]) for g in optimizer.param_groups)
    model.eval()
    with torch.no_grad():
        logits = model(PROBE)
    model.train()
    if exp_lr is not None:
        gauge = exp_lr.gauges[0]
        extra |= {"log_scale": exp_lr.log_scale(), "doublings": gauge.doublings, "state": exp_lr.state_dict()}
        extra["eps"] = inner(model)[1].eps
    return {
        "direction": tagged / tagged.norm(),
        "length": tagged.norm(),
        "rest": rest,
        "logits": logits,
        **extra,
    }


def run(name, engine="single", *, convert=True, give_model=True, stop=STEPS):
    """One run of a case."""
    case = CASES[name]
    model, optimizer = build(case, engine)
    exp_lr = nc.ExpLR(optimizer, model if give_model else None) if convert else None
    norms = advance(model, optimizer, exp_lr, case, stop=stop)
    return result(model, optimizer, exp_lr, norms=norms)


def wrong_growth(engine, stop):
    """The exponential rate without the momentum correction."""
    case = CASES["layer"]
    model, optimizer = build(case, engine)
    group = optimizer.param_groups[0]
    group["weight_decay"] = 0.0
    rate = lambda t: group.update(lr=0.1 * (1 - 1e-3) ** (-2 * t - 1))  # noqa: E731
    advance(model, optimizer, None, case, stop=stop, each=rate)
    return result(model, optimizer)


def restarted(name, engine):
    """Half a run, saved through bytes; then another net, which loads them and goes on."""
    case = CASES[name]
    model, optimizer = build(case, engine)
    exp_lr = nc.ExpLR(optimizer, model)
    advance(model, optimizer, exp_lr, case, 0, STEPS // 2)
    file = io.BytesIO()
    torch.save([thing.state_dict() for thing in (model, optimizer, exp_lr)], file)
    file.seek(0)
    model, optimizer = build(case, engine, seed=5)
    exp_lr = nc.ExpLR(optimizer, model)
    for thing, state in zip(
        (exp_lr, optimizer, model), torch.load(file, weights_only=True)[::-1], strict=True
    ):
        thing.load_state_dict(state)
    advance(model, optimizer, exp_lr, case, STEPS // 2)
    return result(model, optimizer, exp_lr)


def detached(engine):
    """Half a run, a look at the logits (after which FSDP keeps whole weights), then back to weight decay."""
    case = CASES["rebases"]
    model, optimizer = build(case, engine)
    exp_lr = nc.ExpLR(optimizer, model)
    advance(model, optimizer, exp_lr, case, 0, STEPS // 2)
    middle = result(model, optimizer, exp_lr)
    exp_lr.detach()
    advance(model, optimizer, None, case, STEPS // 2)
    return result(model, optimizer, middle=middle)


class Both:
    """Model and optimizer as torch.distributed.checkpoint saves them."""

    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer

    def state_dict(self):
        return dict(zip(("model", "optimizer"), get_state_dict(self.model, self.optimizer), strict=True))

    def load_state_dict(self, state):
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )


def save_half(engine, folder):
    """Half a run, saved with torch.distributed.checkpoint; ExpLR's numbers by the first process."""
    case = CASES["rebases"]
    model, optimizer = build(case, engine)
    exp_lr = nc.ExpLR(optimizer, inner(model))
    advance(model, optimizer, exp_lr, case, 0, STEPS // 2)
    dcp.save({"both": Both(model, optimizer)}, checkpoint_id=folder / engine)
    if rank() == 0:
        torch.save(exp_lr.state_dict(), folder / f"{engine}.pt")


def go_on_alone(engine, folder):
    """The second half, in a single process."""
    case = CASES["rebases"]
    model, optimizer = build(case, "single", seed=5)
    exp_lr = nc.ExpLR(optimizer, model)
    dcp.load({"both": Both(model, optimizer)}, checkpoint_id=folder / engine, no_dist=True)
    exp_lr.load_state_dict(torch.load(folder / f"{engine}.pt", weights_only=True))
    advance(model, optimizer, exp_lr, case, STEPS // 2)
    return result(model, optimizer, exp_lr)


def attempt(function, *args, **options):
    """The result, or the error as text."""
    try:
        return function(*args, **options)
    except (NotImplementedError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def tested(engine):
    """Attach with the test of the tags."""
    model = engine_of(engine, net("layer"))
    optimizer = SGD(groups(inner(model)), **HARD)
    nc.ExpLR(optimizer, model, loss_fn=nn.functional.cross_entropy, batch=next(batches(1)))
    return "quiet"


def sync_batch_norm():
    """SyncBatchNorm on a processor."""
    return nn.SyncBatchNorm(2)(torch.ones(4, 2)).shape


def main(folder):
    """All runs of two processes."""
    torch.set_num_threads(1)
    if not dist.is_initialized():  # by a script before this one
        dist.init_process_group("gloo")
    results = {}
    for engine in ("ddp", "fsdp"):
        for name in CASES:
            results[engine, name] = attempt(restarted if name in RESTARTED else run, name, engine)
        results[engine, "eps forgotten"] = run("layer", engine, give_model=False, stop=CONTROL)
        results[engine, "tested"] = attempt(tested, engine)
        save_half(engine, folder)
    for engine in ("ddp", *LAYOUTS):
        results[engine, "detached"] = detached(engine)
    results["ddp", "wrong growth"] = wrong_growth("ddp", CONTROL)
    results["alone", "layer"] = run("layer", "alone", stop=CONTROL)
    results["bare fused"] = attempt(run, "fused", "fsdp", convert=False)
    results["sync"] = attempt(sync_batch_norm)
    torch.save(results, folder / f"{rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
