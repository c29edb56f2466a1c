"""Examine a model, its optimizer and one batch: what rates, weight decay and eps will do in the run ahead."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import compress, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from normcore.catapult.warm_up import lr_phases
from normcore.checks import checked_count, checked_loss, require_module, require_type
from normcore.curvature.hessian import hessian_top_eigenvalue
from normcore.curvature.snapshot import grad
from normcore.doctor.findings import GROUNDS, Diagnosis, Finding, Group, changes, course, rates_ahead, say
from normcore.equivalence.group_gauge import GAUGE_OF
from normcore.invariance.degrees import EPS_NAMES, NO_EPS
from normcore.invariance.probing import (
    Called,
    Evaluator,
    call,
    checked_parameters,
    inputs_and_targets,
    untouched,
)
from normcore.invariance.report import InvarianceReport, scale_invariance
from normcore.invariance.symmetries import scaling_symmetries
from normcore.norm_dynamics.rates import look_up, rates_of
from normcore.schedules import FloatArray

TURN = 0.3
"""A step that turns scale-free weights by this angle, in radians, is a warning: small steps are assumed throughout."""
BLUR = 1e-2
"""So is an eps that changes an output, or an update, by this much: `scale_invariance` draws its line there."""
OVERSHOOT = 2.0
"""An effective rate this many times its equilibrium value is worth a note."""
SETTLED = 0.05
"""A norm this close to its equilibrium is there."""
SHOWN = 4
"""Names, and changes of the schedule, that the page lists."""
MEANING = {
    "alone": "a learning rate (scale-free: it sets only their norm) on",
    "jointly": "a learning rate (scale-free together: it sets only their norm) on",
    "inert": "nothing (no value matters in train mode) on",
    "undetermined": "not known (they are 0 or have no effect here) on",
    "rest": "a penalty on",
}
"""What weight decay is to the tensors of each role."""


def diagnose(
    model: nn.Module,
    optimizer: Optimizer,
    batch: Any,
    *,
    loss_fn: Callable[[Any, Any], Tensor],
    steps: int,
    scheduler: Any = None,
    scheduler_every: int = 1,
) -> Diagnosis:
    """Say what weight decay, learning rates and eps will do in a run, from one batch and without a step.

    Model, optimizer, scheduler, gradients and random state are left as they were; all is measured in train mode.
    For SGD (momentum, Nesterov) and AdamW all statements are made, for other optimizers those that hold for them.

    Args:
        model: any module, called as model(x), or as model(**x) if x is a mapping (of whose result the `logits` are
            taken, if it has such); not under an `ExpLR`, whose weights are in other units.
        optimizer: torch's, over parameters of the model, with the hyper-parameters it starts with.
        batch: (x, y), or one mapping, as of Hugging Face, whose "labels" are y; as large as the optimizer will see
            them: S depends on it.
        loss_fn: scalar loss of (output, y).
        steps: optimizer steps ahead, >= 1.
        scheduler: a torch scheduler of this optimizer.
        scheduler_every: optimizer steps from one `scheduler.step()` to the next.

    Returns:
        Diagnosis: print it. Each finding carries its numbers, its source and what it assumes.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a loss that is not one finite number, parameters that are not the model's, a scheduler of another
            optimizer, an attached ExpLR, steps or scheduler_every < 1.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=5e-3, momentum=0.9)
        >>> batch = torch.randn(16, 4), torch.randint(2, (16,))
        >>> d = diagnose(net, optimizer, batch, loss_fn=nn.functional.cross_entropy, steps=1000)
        >>> round(d["equilibrium/group 0"].value["time_constants"])  # 4 * 0.1 * 5e-3 / (1 - 0.9) * 1000
        20
        >>> round(d.plan(ratio_batch=4)["plan/group 0"].value["lr"], 6)
        0.4

    Source: the papers that each finding names.

    """
    _check(model, optimizer, loss_fn, scheduler)
    x, y = inputs_and_targets(batch)
    checked_count("steps", steps)
    rates = rates_ahead(optimizer, scheduler, steps, checked_count("scheduler_every", scheduler_every))
    with untouched(model, train=True), torch.enable_grad():
        weights, loss = checked_parameters(model), checked_loss(loss_fn(call(model, x), y))
        grads = dict(zip(weights, grad(loss, list(weights.values())), strict=True))
        joint, roles = _roles(scale_invariance(model, loss_fn, (x, y)))
        groups = _groups(model, optimizer, joint, roles, rates, grads)
        findings = [_scale_free(groups, grads, roles, _reciprocal(model, x))]
        for group in groups:
            findings += [_decay(group), *(_equilibrium(group) if group.free else ())]
        if isinstance(scheduler, ReduceLROnPlateau):
            unknown = "the scheduler follows a metric, which cannot be foreseen: rates are read as constant"
            findings.append(say("change", unknown, "note"))
        findings += [_layer_eps(model, x, groups), *_adam_eps(optimizer, grads)]
        findings.append(_curvature(model, loss_fn, (x, y), groups))
    for what, ratios in (("batch x2", (2.0, 1.0)), ("epochs x2", (1.0, 2.0))):
        for f in (group.planned(*ratios) for group in groups):
            findings.append(say(f.name.replace("/", f"/{what}, "), f.text, f.level, **f.value))
    title = f"{type(optimizer).__name__}, {len(groups)} group(s) of parameters, {steps:,} steps ahead"
    findings.sort(key=lambda finding: list(GROUNDS).index(finding.topic))
    return Diagnosis(title, tuple(findings), tuple(groups))


def _check(model: Any, optimizer: Any, loss_fn: Any, scheduler: Any) -> None:
    require_module(model)
    require_type("optimizer", optimizer, Optimizer, "a torch.optim.Optimizer")
    require_type("loss_fn", loss_fn, Callable, "callable")
    require_type("scheduler", scheduler, LRScheduler | None, "a torch LRScheduler or None")
    own = {id(p) for p in model.parameters()}
    foreign = sum(id(p) not in own for group in optimizer.param_groups for p in group["params"])
    if foreign:
        raise ValueError(f"optimizer must hold parameters of the model only, got {foreign} others")
    if scheduler is not None and scheduler.optimizer is not optimizer:
        raise ValueError("scheduler must be of this optimizer, got one of another")
    if not own.isdisjoint(GAUGE_OF):
        raise ValueError("optimizer must not be under an ExpLR, got one: diagnose before it is attached")


def _roles(report: InvarianceReport) -> tuple[list[tuple[str, ...]], dict[str, str]]:
    """The jointly scale-free sets, and name -> alone, jointly, inert, undetermined or rest; eps has its own finding."""
    joint = [group.names for group in report.groups.values() if group.verdict.startswith("yes")]
    roles = {"yes": "alone", "yes but for eps": "alone", "no": "rest", "undetermined": "undetermined"}
    found = {name: "inert" if v.inert else roles[v.verdict] for name, v in report.tensors.items()}
    return joint, found | {name: "jointly" for names in joint for name in names}


def _reciprocal(model: nn.Module, x: Any) -> list[str]:
    """The tensors that may grow as others shrink: of a symmetry with exponents of both signs."""
    found = scaling_symmetries(model, (x, None))
    signed = found.exponents[(found.exponents < 0).any(axis=1)]
    return list(compress(found.names, (signed != 0).any(axis=0).tolist()))


def _groups(
    model: nn.Module,
    optimizer: Optimizer,
    joint: Any,
    roles: Any,
    rates: FloatArray,
    grads: Mapping[str, Tensor],
) -> list[Group]:
    """The optimizer's groups, with norm, S and count of what has an equilibrium of its own in each."""
    weights, groups = dict(model.named_parameters()), []
    for i, own in enumerate(optimizer.param_groups):
        held = [name for name in grads if any(weights[name] is p for p in own["params"])]
        names = {role: [name for name in held if roles[name] == role] for role in MEANING}
        units = []
        for unit in [*((name,) for name in names["alone"]), *joint]:
            if set(unit) <= set(held):
                sizes = [[float(of[n].detach().double().norm()) for n in unit] for of in (weights, grads)]
                norm, grad = (math.hypot(*each) for each in sizes)
                units.append((norm, (norm * grad) ** 2, sum(weights[name].numel() for name in unit)))
        alive, label = [unit for unit in units if unit[1] > 0], str(own.get("name", f"group {i}"))
        known = rates_of(optimizer, own)
        family = None if known is None else known.family
        groups.append(Group(label, names, family, rates[i], own.get("betas"), alive))
    return groups


def _scale_free(
    groups: Sequence[Group], grads: Mapping[str, Tensor], roles: Mapping[str, str], pairs: Sequence[str]
) -> Finding:
    """Shares of the trainable weights, by role and of those in pairs beside it, and those that nobody trains."""
    sizes = {name: grad.numel() for name, grad in grads.items()}
    total, held = sum(sizes.values()), {n for g in groups for ns in g.names.values() for n in ns}
    shares = {role: sum(sizes[n] for n in sizes if roles[n] == role) / total for role in MEANING}
    opposed = {"share": sum(sizes[name] for name in pairs) / total, "names": list(pairs)}
    text = f"of {total:,} trainable weights " + ", ".join(f"{s:.1%} {role}" for role, s in shares.items())
    text += f"; {opposed['share']:.1%} reciprocally (one up, another down: decay balances the two)"
    idle = [name for name in grads if name not in held]
    text += f". In no group of the optimizer: {_some(idle)}" if idle else ""
    numbers = {"shares": shares, "reciprocal": opposed, "weights": total, "idle": idle}
    return say("scale-free", text, "warning" if idle else "ok", **numbers)


def _decay(group: Group) -> Finding:
    weight_decay = float(group.rates[:, 1].max())
    parts = [f"{MEANING[role]} {_some(names)}" for role, names in group.names.items() if names]
    text = f"{weight_decay:.4g} is " + "; ".join(parts) if weight_decay and parts else "none"
    return say(f"weight decay/{group.label}", text, weight_decay=weight_decay, names=dict(group.names))


def _equilibrium(group: Group) -> Iterator[Finding]:
    """The stationary state at the largest lr times weight decay of the run, and the way to it."""
    try:
        state = group.equilibrium()
    except ValueError as error:
        exists = group.family is not None and bool(group.units) and group.peak[0] * group.peak[1] > 0
        yield say(f"equilibrium/{group.label}", f"none: {error}", "warning" if exists else "note")
        return
    lambda_e = 1 / (look_up(str(group.family)).power * state.relaxation_steps)
    inside = len(group.rates) / state.relaxation_steps
    yield say(
        f"equilibrium/{group.label}",
        f"intrinsic LR {lambda_e:.3g}; time constant {state.relaxation_steps:,.0f} steps, {inside:.3g} of them in "
        f"the run; angle {state.angle:.3g} rad a step; norm {state.norm:.4g}, now {group.norm:.4g}",
        "warning" if state.angle > TURN else "ok",
        intrinsic_lr=lambda_e,
        time_constant=state.relaxation_steps,
        time_constants=inside,
        angle=state.angle,
        norm=group.norm,
        equilibrium_norm=state.norm,
    )
    yield from _run(group, str(group.family), state.angle)


def _run(group: Group, family: str, angle: float) -> Iterator[Finding]:
    """When the norm arrives, how far the effective rate overshoots, and what each change of the schedule does."""
    power = look_up(family).power
    rate, target = course(group.rates, family, group.norm**power / group.size)
    over = np.divide(rate, target, out=np.full_like(rate, np.nan), where=target > 0)
    off = np.abs(over ** (-2 / power) - 1)  # of the norm: at one lr the rate goes as its power -power/2
    first = int(np.argmax(off < SETTLED)) if (off < SETTLED).any() else None
    most, jumps = int(np.nanargmax(over)), changes(group.rates)
    turn = angle * float(rate.max() / target.max())  # for one S the angle goes as the effective rate
    there = "at no step" if first is None else f"at step {first:,}"
    if jumps and first is not None:
        there += f", {'before' if first < jumps[0] else 'after'} the first change"
    yield say(
        f"run/{group.label}",
        f"the norm is first within {SETTLED:.0%} of equilibrium {there}; the effective rate is at most "
        f"{over[most]:.3g} times its equilibrium value (step {most:,}), {over[-1]:.3g} times at the end; a step "
        f"turns the weights by at most {turn:.3g} rad",
        "warning" if turn > TURN else "note" if first is None or over[most] > OVERSHOOT else "ok",
        settled_at=first,
        overshoot=float(over[most]),
        overshoot_at=most,
        at_the_end=float(over[-1]),
        largest_angle=turn,
        changes=jumps,
    )
    for jump, until in list(pairwise([*jumps, len(rate)]))[:SHOWN]:
        ratios = [float(e / rate[jump - 1]) for e in (rate[jump], target[jump], rate[until - 1])]
        old, new = group.rates[jump - 1].tolist(), group.rates[jump].tolist()
        yield say(
            f"change/{group.label}, step {jump:,}",
            f"lr {old[0]:.3g} -> {new[0]:.3g}, weight decay {old[1]:.3g} -> {new[1]:.3g}: the effective rate goes "
            f"to x{ratios[0]:.3g} at once and x{ratios[1]:.3g} in the end; after the {until - jump:,} steps it has "
            f"it is at x{ratios[2]:.3g}",
            at_once=ratios[0],
            in_the_end=ratios[1],
            by_the_next=ratios[2],
        )


def _layer_eps(model: nn.Module, x: Any, groups: Sequence[Group]) -> Finding:
    """By how much the layers' eps change the output, now and with every norm at its equilibrium."""
    places = [(layer, name) for layer in model.modules() for name in EPS_NAMES]
    held = [place for place in places if isinstance(getattr(*place, None), float)]
    own, shrunk = [getattr(*place) for place in held], [1.0]
    for group in groups:
        try:
            shrunk.append((group.norm / group.equilibrium().norm) ** 2)
        except ValueError:  # no equilibrium, no move
            continue
    evaluate, outputs = Evaluator(model, x, seed=0), []
    try:
        for factor in (0.0, 1.0, max(shrunk)):
            for (layer, attribute), eps in zip(held, own, strict=True):
                setattr(layer, attribute, max(factor * eps, NO_EPS))
            outputs.append(evaluate())
    finally:
        for (layer, attribute), eps in zip(held, own, strict=True):
            setattr(layer, attribute, eps)
    size = max(float(outputs[0].norm()), torch.finfo(torch.float64).tiny)
    now, later = (float((output - outputs[0]).norm()) / size for output in outputs[1:])
    text = f"those of {len(held)} layers change the output by {now:.2g} now and by {later:.2g} at the equilibrium norms"
    return say("eps", text, "warning" if later > BLUR else "ok", layers=len(held), now=now, later=later)


def _adam_eps(optimizer: Optimizer, grads: Mapping[str, Tensor]) -> Iterator[Finding]:
    """By how much the eps of Adam's family shortens an update."""
    eps = max(float(group.get("eps", 0.0)) for group in optimizer.param_groups)
    sizes = torch.cat([g.detach().double().abs().flatten().cpu() for g in grads.values()])
    if eps > 0 and bool(sizes.any()):
        effect = float((eps / (sizes[sizes > 0] + eps)).mean())
        text = f"that of {type(optimizer).__name__}, {eps:g}, shortens the updates by {effect:.2g} on average"
        yield say("eps/optimizer", text, "warning" if effect > BLUR else "ok", effect=effect)


def _curvature(model: nn.Module, loss_fn: Any, batch: Any, groups: Sequence[Group]) -> Finding:
    """The top Hessian eigenvalue and the edges it gives, beside the rate in use."""
    try:
        found = hessian_top_eigenvalue(Called(model), loss_fn, batch, tol=1e-2, max_matvecs=80)
        phases = lr_phases(found)
    except (ValueError, RuntimeError) as error:
        return say("curvature", f"no edges: {error}", "note")
    text = f"measured: top Hessian eigenvalue {found.value:.4g} on this batch, now. Theory: 2/lambda = "
    text += f"{phases.critical_lr:.3g}, 4/lambda = {phases.max_lr:.3g}. "
    level, lr, peak, edge = "ok", math.nan, math.nan, math.nan
    if any(group.family not in ("sgd", "nesterov") for group in groups):
        text += "They bound plain gradient steps, not those of this optimizer"
    else:
        top = max(groups, key=lambda group: float(group.rates[:, 0].max()))
        (lr, _, m), peak = top.rates[0].tolist(), float(top.rates[:, 0].max())
        edge = 2 * (1 + m) / (1 + 2 * m if top.family == "nesterov" else 1) / found.value
        free = any(group.free for group in groups)
        text += f"Rate in use {lr:.3g}, at most {peak:.3g} ahead: {lr / edge:.2g} and {peak / edge:.2g} of the edge"
        text += f" {edge:.3g} that a quadratic has at momentum {m:g}"
        text += "; beyond it scale-free weights grow until they are below" if free and peak > edge else ""
        level = "ok" if peak <= edge else "note" if free or lr <= 2 * edge else "warning"
    edges = {"critical_lr": phases.critical_lr, "max_lr": phases.max_lr, "edge": edge}
    return say("curvature", text, level, lr=lr, peak_lr=peak, curvature=found.value, **edges)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
