"""Convert saved runs between the gauges: with weight decay, exponential, and unit norm.

Functions and their future stay as they are.
"""

import copy
import math
from typing import Any, Literal

from torch import Tensor

from normcore.group_gauge import BUFFER_DEGREES

State = dict[str, Any]


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
        ValueError: `to` is unknown, or the state lacks what the conversion needs.

    Example:
        >>> import torch
        >>> state = {"model": {"w": torch.ones(2)}, "optimizer": {"param_groups": [], "state": {}}}
        >>> convert_checkpoint(state, "weight_decay")["model"]["w"].tolist()
        [1.0, 1.0]

    Source: equivalent scaling, Li & Arora (2020), arXiv 1910.07454, Definitions 2.3 and 2.6.

    """
    if to not in ("weight_decay", "exp_lr", "unit_norm"):
        raise ValueError(f"to must be 'weight_decay', 'exp_lr' or 'unit_norm', got {to!r}")
    missing = [key for key in ("model", "optimizer") if key not in state]
    if missing:
        raise ValueError(
            f"state must hold 'model' and 'optimizer', got no {' and no '.join(map(repr, missing))}"
        )
    new = copy.deepcopy(state)
    exp_lr = new.get("exp_lr")
    if exp_lr is None:
        if to != "weight_decay":
            raise ValueError(
                f"state must hold 'exp_lr' to be converted to {to!r}; to start one, attach ExpLR to the loaded run (its gauge begins at x = 1)"
            )
        new["exp_lr"] = None
        return new
    if to == "exp_lr":
        return new
    for part in ("groups", "names"):  # keys become strings on their way through JSON
        exp_lr[part] = {int(index): value for index, value in exp_lr[part].items()}
    for index, gauge in exp_lr["groups"].items():
        names = exp_lr["names"][index]
        if names is None:
            raise ValueError(
                "state['exp_lr'] must name the weights, got None: save it from ExpLR(optimizer, model=model)"
            )
        factor = 1.0 / gauge["x"] if to == "weight_decay" else _norm([new["model"][name] for name in names])
        _shift(new, index, names, gauge if to == "weight_decay" else None)
        _multiply(new, index, names, gauge, factor)
    if to == "weight_decay":
        new["exp_lr"] = None
    return new


def _norm(tensors: list[Tensor]) -> float:
    """The joint norm, in float64."""
    return math.sqrt(sum(float(t.double().pow(2).sum()) for t in tensors))


def _buffers(state: State, index: int, names: list[str]) -> list[tuple[str, State]]:
    """Pairs of a weight's name and its optimizer state, for the group of this index."""
    ids = state["optimizer"]["param_groups"][index]["params"]
    return [(name, state["optimizer"]["state"].get(i, {})) for name, i in zip(names, ids, strict=True)]


def _shift(state: State, index: int, names: list[str], gauge: State | None) -> None:
    """Add p theta to the momentum buffers: the radial part that the exponential gauge takes out of them."""
    if gauge is None or gauge["ratio"] == 0.0:
        return
    for name, buffers in _buffers(state, index, names):
        if buffers.get("momentum_buffer") is not None:
            buffers["momentum_buffer"] = (
                buffers["momentum_buffer"] + gauge["ratio"] * gauge["x"] ** 2 * state["model"][name]
            )


def _multiply(state: State, index: int, names: list[str], gauge: State, factor: float) -> None:
    """Multiply x by the factor, and weights, buffers and running statistics to match."""
    for name, buffers in _buffers(state, index, names):
        state["model"][name] = state["model"][name] / factor
        for buffer, degree in BUFFER_DEGREES.items():
            if buffers.get(buffer) is not None:
                buffers[buffer] = buffers[buffer] * factor**degree
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
            key = f"{layer}.{statistic}" if layer else statistic
            if model.get(key) is not None:
                model[key] = model[key] * scale**power
