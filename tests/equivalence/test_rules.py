"""What an optimizer does with weight decay, read off it."""

import pytest
import torch
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RAdam

from normcore.equivalence.gauge import RULES, UpdateRule, look_up, rule_of, unwrapped


class WrapsItsStep(SGD):
    """Decay outside, in a step of its own: another rule, whatever it inherits."""

    def step(self, closure=None):
        return super().step(closure)


class Renamed(SGD):
    """Another name and nothing else."""


def weights():
    return [torch.nn.Parameter(torch.ones(2, 2))]


CASES = {
    "sgd": lambda w: SGD(w, lr=0.1, momentum=0.9),
    "nesterov": lambda w: SGD(w, lr=0.1, momentum=0.9, nesterov=True),
    "sgd by another name": lambda w: Renamed(w, lr=0.1),
    "adamw": AdamW,
    "adamw as an option": lambda w: Adam(w, weight_decay=0.1, decoupled_weight_decay=True),
    "degree0": lambda w: NAdam(w, weight_decay=0.1, decoupled_weight_decay=True),
    "degree0 of RAdam": lambda w: RAdam(w, weight_decay=0.1, decoupled_weight_decay=True),
}
NONE = {
    "coupled Adam": lambda w: Adam(w, weight_decay=0.1),
    "coupled NAdam": lambda w: NAdam(w, weight_decay=0.1),
    "RMSprop": torch.optim.RMSprop,
    "LBFGS": torch.optim.LBFGS,
    "Adafactor": lambda w: torch.optim.Adafactor(w),  # scales its step by the weights' own size
    "a step of its own": lambda w: WrapsItsStep(w, lr=0.1),
}


YOUNG = {"adamw as an option", "Adafactor"}


def of(cases):
    """Their names; what an old torch does not have is skipped."""
    young = pytest.mark.skipif(torch.__version__ < (2, 6), reason="of torch 2.6 and later")
    return [pytest.param(name, marks=young) if name in YOUNG else name for name in cases]


@pytest.mark.parametrize("name", of(CASES))
def test_rules_of_torch(name):
    optimizer = CASES[name](weights())
    assert rule_of(optimizer, optimizer.param_groups[0]) == name.split()[0]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon():
    optimizer = torch.optim.Muon(weights())
    assert rule_of(optimizer, optimizer.param_groups[0]) == "muon"


@pytest.mark.parametrize("name", of(NONE))
def test_optimizers_without_a_rule(name):
    optimizer = NONE[name](weights())
    assert rule_of(optimizer, optimizer.param_groups[0]) is None


@pytest.mark.parametrize("make", [CASES["sgd"], CASES["adamw"], CASES["degree0"]])
def test_a_decoupled_rule_multiplies_a_weight_without_gradient_and_a_coupled_one_moves_its_buffer(make):
    """The rules that are read off, against what the optimizer does to a number whose gradient is zero."""
    (w,) = weights()
    optimizer = make([w])
    optimizer.param_groups[0].update(lr=0.5, weight_decay=0.25)
    for _ in range(2):
        w.grad = torch.zeros_like(w)
        optimizer.step()
    decoupled = look_up(rule_of(optimizer, optimizer.param_groups[0])).decoupled
    kept = (1 - 0.5 * 0.25) ** 2 if decoupled else 1 - 0.125 - 0.5 * (0.9 * 0.25 + 0.25 * 0.875)
    assert float(w.detach()[0, 0]) == pytest.approx(kept, rel=1e-6)


def test_names_and_properties():
    assert {"sgd", "nesterov", "sgdw", "adamw", "lion", "muon"} < set(RULES)
    assert RULES["nesterov"] == UpdateRule(decoupled=False, nesterov=True)
    assert {name for name, rule in RULES.items() if not rule.decoupled} == {"sgd", "nesterov"}
    assert {name for name, rule in RULES.items() if rule.degree == 1} == {"sgd", "nesterov", "sgdw"}
    assert [RULES[name].power for name in ("sgd", "adamw")] == [4, 2]
    with pytest.raises(AttributeError):
        RULES["sgd"].degree = 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: look_up("adam"), "rule must be one of .*, got 'adam'"),
        (lambda: UpdateRule(decoupled=True, degree=3), "degree must be 0, 1 or 2, got 3"),
        (lambda: UpdateRule(decoupled=False, degree=0), "degree must be 1 unless decoupled=True, got 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_trainers_wrappers_are_taken_off():
    class Accelerated(Optimizer):
        """As accelerate's: an Optimizer that has not called its parent, around one."""

        def __init__(self, optimizer):
            self.optimizer = optimizer

    inner = SGD(weights(), lr=0.1)
    assert unwrapped(Accelerated(Accelerated(inner))) is inner and unwrapped(inner) is inner
    with pytest.raises(TypeError, match="optimizer must be a torch optimizer, got str"):
        unwrapped("sgd")
