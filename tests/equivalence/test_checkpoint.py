"""Checkpoints in other gauges: the same function and the same future."""

import copy
import json

import pytest
import torch
from nets import batches, groups, net, step
from torch.optim import SGD, AdamW

import normcore as nc

GAP = 1e-9
"""Float64 logits after 40 steps."""

MAKE = {
    "momentum": lambda g: SGD(g, lr=0.1, weight_decay=1e-2, momentum=0.9),
    "past critical": lambda g: SGD(g, lr=0.1, weight_decay=0.3, momentum=0.9),
    "adamw": lambda g: AdamW(g, lr=0.01, weight_decay=0.3),
}


def trained(name):
    """A model after 30 steps with ExpLR, and its checkpoint."""
    model = net(eps=1e-2)
    optimizer = MAKE[name](groups(model))
    exp_lr = nc.ExpLR(optimizer, model)
    for batch in batches(30):
        step(model, optimizer, batch)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "exp_lr": exp_lr.state_dict()}
    return model, optimizer, copy.deepcopy(state)


def resumed(name, state):
    """A fresh model that goes on from a checkpoint."""
    model = net(eps=1e-2, seed=9)
    optimizer = MAKE[name](groups(model))
    if state["exp_lr"] is not None:
        nc.ExpLR(optimizer, model).load_state_dict(state["exp_lr"])
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return model, optimizer


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("to", ["weight_decay", "exp_lr", "unit_norm"])
def test_the_future_does_not_change(name, to):
    model, optimizer, state = trained(name)
    before = copy.deepcopy(state)
    converted = nc.convert_checkpoint(state, to)
    twin, twin_optimizer = resumed(name, converted)
    for batch in batches(40, seed=3):
        assert float((step(model, optimizer, batch) - step(twin, twin_optimizer, batch)).abs().max()) < GAP
    model.eval(), twin.eval()
    x = next(batches(1))[0]
    assert float((model(x) - twin(x)).detach().abs().max()) < GAP
    for key, value in before["model"].items():
        assert torch.equal(value, state["model"][key])  # the argument is left as it was


@pytest.mark.parametrize("to", ["weight_decay", "unit_norm"])
def test_a_way_through_json_and_two_tagged_groups_change_nothing(to):
    """Group keys become strings in JSON; the groups' norm layers must still be found."""
    model = net(eps=1e-2)
    tagged = [
        {"params": [model.get_parameter(name)], "scale_invariant": True, "lr": lr}
        for name, lr in (("0.weight", 0.1), ("3.weight", 0.3))
    ]
    rest = [p for name, p in model.named_parameters() if name not in ("0.weight", "3.weight")]
    optimizer = SGD([*tagged, {"params": rest, "weight_decay": 0.0}], lr=0.1, weight_decay=1e-2, momentum=0.9)
    exp_lr = nc.ExpLR(optimizer, model)
    for batch in batches(30):
        step(model, optimizer, batch)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "exp_lr": exp_lr.state_dict()}
    through = {**state, "exp_lr": json.loads(json.dumps(state["exp_lr"]))}
    x = next(batches(1))[0]
    twin = net(eps=1e-2, seed=9)
    twin.load_state_dict(nc.convert_checkpoint(through, to)["model"])
    model.eval(), twin.eval()
    if to == "weight_decay":  # without ExpLR the twin has the eps that it was made with
        assert float((model(x) - twin(x)).detach().abs().max()) < GAP
    for name, value in nc.convert_checkpoint(state, to)["model"].items():
        assert torch.equal(value, twin.state_dict()[name]), name


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("wrapped", ["model", "exp_lr"])
def test_names_that_a_wrapper_has_lengthened(prefix, wrapped):
    """The model saved bare and ExpLR given what DDP or torch.compile made of it, or the reverse."""
    _, _, state = trained("momentum")
    expected = nc.convert_checkpoint(state, "weight_decay")["model"]
    if wrapped == "model":
        state["model"] = {prefix + name: value for name, value in state["model"].items()}
        expected = {prefix + name: value for name, value in expected.items()}
    else:
        record = state["exp_lr"]
        record["names"] = {i: [prefix + name for name in names] for i, names in record["names"].items()}
        degrees = record["norms"]["degrees"]
        record["norms"]["degrees"] = {prefix + name: row for name, row in degrees.items()}
    found = nc.convert_checkpoint(state, "weight_decay")["model"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_gauges_are_what_they_say():
    _, _, state = trained("momentum")
    names = ["0.weight", "3.weight"]
    unit = nc.convert_checkpoint(state, "unit_norm")
    joint = sum(unit["model"][name].pow(2).sum() for name in names).sqrt()
    assert float(joint) == pytest.approx(1.0, rel=1e-12)
    decayed = nc.convert_checkpoint(state, "weight_decay")
    assert decayed["exp_lr"] is None
    for name in names:
        assert not torch.equal(decayed["model"][name], state["model"][name])
    assert torch.equal(decayed["model"]["6.weight"], state["model"]["6.weight"])


def test_control_weights_alone_are_not_a_checkpoint():
    model, optimizer, state = trained("momentum")
    converted = nc.convert_checkpoint(state, "weight_decay")
    converted["optimizer"] = state["optimizer"]  # buffers left in the other gauge
    with pytest.raises(ValueError, match="optimizer must have an ExpLR attached"):
        resumed("momentum", converted)[1].step()
    del converted["optimizer"]["param_groups"][0]["exp_lr"]
    twin, twin_optimizer = resumed("momentum", converted)
    gaps = [
        float((step(model, optimizer, b) - step(twin, twin_optimizer, b)).abs().max())
        for b in batches(40, seed=3)
    ]
    assert gaps[0] < GAP < 1e-4 < max(gaps)


@pytest.mark.parametrize(
    ("change", "to", "message"),
    [
        ({}, "polar", r"to must be one of .*, got 'polar'"),
        ({"model": None}, "weight_decay", r"state\['model'\] must be a state_dict, got NoneType"),
        ({"exp_lr": None}, "unit_norm", r"state must hold 'exp_lr' to be converted to 'unit_norm'"),
        ({"model": "zeros"}, "unit_norm", r"state\['model'\] must have weights other than 0 in group 0"),
    ],
)
def test_bad_input(change, to, message):
    _, _, state = trained("momentum")
    zeros = {name: torch.zeros_like(value) for name, value in state["model"].items()}
    state.update({key: zeros if value == "zeros" else value for key, value in change.items()})
    state = {key: value for key, value in state.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        nc.convert_checkpoint(state, to)


def test_needs_names_and_norm_layers():
    _, _, state = trained("momentum")
    unnamed = {**state, "exp_lr": {**state["exp_lr"], "names": {0: None}}}
    with pytest.raises(ValueError, match=r"must name the weights, got None"):
        nc.convert_checkpoint(unnamed, "weight_decay")
    without = {**state, "exp_lr": {**state["exp_lr"], "norms": None}}
    with pytest.raises(ValueError, match=r"must know the norm layers, got norms=None"):
        nc.convert_checkpoint(without, "weight_decay")
