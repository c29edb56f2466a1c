"""Convert saved runs between the gauges: with weight decay, exponential, and unit norm."""

import copy
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from normcore.checks import checked_choice, require_type, understood
from normcore.equivalence.group_gauge import RECORD, numbers_in

State = dict[str, Any]

WRAPPERS = re.compile(r"(?<![^.])(module|_orig_mod)\.")
"""Parts of names that DDP and torch.compile add."""


def convert_checkpoint(state: State, to: Literal["weight_decay", "exp_lr", "unit_norm"]) -> State:
    """Re-gauge a checkpoint: the same function, the same future, other numbers.

    Args:
        state: {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "exp_lr":
            exp_lr.state_dict()}. Without "exp_lr" the checkpoint is one of a run with weight decay. The ExpLR
            must have been given its `model`, since its state then names the weights.
        to: "weight_decay" for a run without ExpLR; "exp_lr" to go on with ExpLR at the scale the checkpoint
            has; "unit_norm" for ExpLR with each tagged group rescaled to joint norm 1.

    Returns:
        A new dictionary with the same keys; "exp_lr" is None after "weight_decay". The argument is left as it
        was.

    Raises:
        TypeError: `to` is no word, or the state no dict.
        ValueError: `to` is unknown, or the state lacks what the conversion needs, or is damaged.

    Example:
        >>> import torch
        >>> state = {"model": {"w": torch.ones(2)}, "optimizer": {"param_groups": [], "state": {}}}
        >>> convert_checkpoint(state, "weight_decay")["model"]["w"].tolist()
        [1.0, 1.0]

    Source: equivalent scaling, Li & Arora (2020), arXiv 1910.07454, Definitions 2.3 and 2.6.

    """
    checked_choice("to", to, ("weight_decay", "exp_lr", "unit_norm"))
    with understood(state, "the states of model, optimizer and ExpLR, saved together"):
        return _converted(copy.deepcopy(dict(state)), to)


def _converted(new: State, to: str) -> State:
    for part in ("model", "optimizer"):
        require_type(f"state[{part!r}]", new.get(part), Mapping, "a state_dict")
    require_type("state['optimizer']['param_groups']", new["optimizer"]["param_groups"], list, "a list")
    exp_lr = new.setdefault("exp_lr", None)
    if exp_lr is None:
        if to != "weight_decay":
            raise ValueError(
                f"state must hold 'exp_lr' to be converted to {to!r}, got none; to start one, attach ExpLR to the "
                "loaded run (its gauge begins at x = 1)"
            )
        return new
    if exp_lr["version"] != 2:
        raise ValueError(f"state['exp_lr'] must be of version 2, got {exp_lr['version']!r}")
    for part in ("groups", "names"):  # keys become strings on their way through JSON
        exp_lr[part] = {int(index): value for index, value in exp_lr[part].items()}
    if exp_lr["groups"].keys() != exp_lr["names"].keys() or not exp_lr["names"]:
        raise ValueError(f"groups must be those of names, got {[*exp_lr['groups']]} and {[*exp_lr['names']]}")
    for gauge in exp_lr["groups"].values():
        gauge["x"], gauge["ratio"], gauge["doublings"] = numbers_in(gauge)
    if to == "exp_lr":
        return new
    for index, gauge in exp_lr["groups"].items():
        if exp_lr["names"][index] is None:
            raise ValueError(
                "state['exp_lr'] must name the weights, got None: save it from ExpLR(optimizer, model=model)"
            )
        found = {name: _find(new["model"], name) for name in exp_lr["names"][index]}
        if None in found.values():
            raise ValueError(f"state['model'] must hold the weights that state['exp_lr'] names, {[*found]}")
        names = [key for key in found.values() if key is not None]
        norm = math.sqrt(sum(float(new["model"][name].double().norm()) ** 2 for name in names))
        if to == "unit_norm" and norm == 0.0:
            raise ValueError(f"state['model'] must have weights other than 0 in group {index}")
        group = new["optimizer"]["param_groups"][index]
        if to == "weight_decay":
            _regauge(new, index, names, 1.0 / gauge["x"], gauge["ratio"] * gauge["x"] ** 2)
            group.pop(RECORD, None)
        else:
            _regauge(new, index, names, norm, 0.0)
            group[RECORD] = gauge
    if to == "weight_decay":
        new["exp_lr"] = None
    return new


def _find(state: State, name: str) -> str | None:
    """The key of this name, whether model and ExpLR were given bare or wrapped (DDP, torch.compile)."""
    if name in state:
        return name
    return {WRAPPERS.sub("", key): key for key in state}.get(WRAPPERS.sub("", name))


def _regauge(state: State, index: int, names: list[str], factor: float, shift: float) -> None:
    """Multiply x by the factor, and weights, converted buffers and running statistics to match.

    `shift` times the weights is the radial part that the exponential gauge takes out of the momentum buffers.
    """
    gauge, weights = state["exp_lr"]["groups"][index], state["model"]
    ids = state["optimizer"]["param_groups"][index]["params"]
    for name, i in zip(names, ids, strict=True):
        buffers = state["optimizer"]["state"].get(i, {})
        buffer = buffers.get("momentum_buffer")
        if buffer is not None:
            buffer = buffer + shift * weights[name] if shift != 0.0 else buffer
            buffers["momentum_buffer"] = buffer if gauge["decoupled"] else buffer * factor
        weights[name] = weights[name] / factor
    gauge["x"] *= factor
    _multiply_statistics(state, index, factor)


def _multiply_statistics(state: State, index: int, factor: float) -> None:
    """The running mean and variance of the layers that the group feeds."""
    model, norms = state["model"], state["exp_lr"]["norms"]
    if norms is None:
        if any(name.endswith("running_var") for name in model):
            raise ValueError(
                "state['exp_lr'] must know the norm layers, got norms=None: save it after the first forward pass"
            )
        return
    position = list(state["exp_lr"]["groups"]).index(index)
    for layer, degrees in norms["degrees"].items():
        scale = factor ** -degrees[position]
        for statistic, power in (("running_mean", 1), ("running_var", 2)):
            key = _find(model, f"{layer}.{statistic}" if layer else statistic)
            if key is not None:
                model[key] = model[key] * scale**power
