"""Every argument of every public function: a wrong type is a TypeError, a bad value a ValueError.

Both name the argument, what was given and the condition, and nothing has changed before. No bad input gives a value,
a NaN or an error from further down.
"""

import copy
import importlib
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_input import NAN, bad, complaint, good, name_of, parameters
from bad_input_core import CORE
from bad_input_lab import LAB, ONE, STACK, X
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import normcore as nc
from normcore import bookkit, catapult, lab
from normcore.bookkit import claims, plots

TABLE = CORE | LAB
ROWS = {
    function: {name: entry for name, entry in row.items() if {name, None} & parameters(function)}
    for function, row in TABLE.items()
}
IDS = [name_of(function) for function in ROWS]
RESULTS = {
    *(
        "Dataset",
        "Descent",
        "Diagnosis",
        "EigenResult",
        "Equilibrium",
        "EquivalentSchedule",
        "FullRun",
        "History",
    ),
    *("CellResult", "InvarianceReport", "Profile", "SDERun", "ScaleFreeReport", "ScalingSymmetries", "Sweep"),
    *("ToyRun", "ValleyRun", "WarmUpRun"),
}
"""Classes of what the package returns: no user makes one."""
FREE = {
    "Record.__getitem__": "a look-up: KeyError with the names that there are, as of any mapping",
    "Sweep.__getitem__": "likewise",
    "Diagnosis.__getitem__": "likewise",
    "Sweep.where": "every setting may be asked for, and has its cells or none",
    "Profile.pick": "passes on what it is given",
    "panels": "arguments of matplotlib's subplots, as they are",
}
"""Public functions without a row, each with its reason."""
CHANGES = {lab.make_scale_invariant, lab.train, nc.ExpLR, nc.NormMonitor}
"""They change a model or an optimizer."""


@pytest.mark.parametrize("function", ROWS, ids=IDS)
def test_bad_input_is_refused(function):
    row = ROWS[function]
    found = {
        f"{name}={str(value)[:60]}": wrong
        for name, value, error in bad(row)
        if (wrong := complaint(function, name, value, error, good(row)))
    }
    assert not found


@pytest.mark.parametrize("function", ROWS, ids=IDS)
def test_good_input_is_taken(function):
    """On copies, where a call changes what it is given."""
    given = good(ROWS[function])
    if "path" not in ROWS[function] or "path" in given:
        function(**copy.deepcopy(given) if function in CHANGES else given)
    claims._records.clear()


def test_the_complaints_are_found():
    """The control: each sort of answer that is none."""

    def answers(x, given):
        if x == "silent":
            return NAN
        if x == "changed":
            given[0] = 0
        raise {"raw": KeyError("x"), "unnamed": TypeError("no")}.get(x, ValueError("x must be 1, got 2"))

    for x in ("raw", "unnamed", "silent", "changed"):
        assert complaint(answers, "x", x, ValueError, {"given": [1]})[0] == x
    assert complaint(answers, "x", 2, TypeError, {"given": [1]})[0] == "other type"
    assert complaint(answers, "x", 2, ValueError, {"given": [1]}) is None


def public():
    """All public functions, and the methods of all public classes."""
    names = [getattr(module, name) for module in (nc, catapult, lab, bookkit) for name in module.__all__]
    drawing = [one for one in vars(plots).values() if getattr(one, "__module__", "") == plots.__name__]
    for one in [*names, *drawing]:
        if isinstance(one, type):
            if one.__name__ not in RESULTS:
                yield one
            own = [base for base in one.__mro__ if base.__module__.startswith("normcore")]
            members = {name for base in own for name in vars(base)}
            yield from (getattr(one, n) for n in members if n in ("__call__", "__getitem__") or n[0] != "_")
        elif callable(one):
            yield one


def test_every_public_function_has_a_row():
    held = {}
    for function, row in ROWS.items():
        held.setdefault(name_of(function), set()).update(row)
    missing = {}
    for one in filter(callable, public()):
        name, wanted = name_of(one), parameters(one) - {"self", None}
        if name not in FREE and not wanted <= held.get(name, set()):
            missing[name] = wanted - held.get(name, set())
    assert missing == {}
    assert not FREE.keys() & held.keys()


def test_the_page_on_testing_counts_no_more_calls_than_are_made():
    page = (Path(__file__).parent.parent / "book" / "how_it_is_tested.md").read_text()
    functions = int(re.search(r"a row for each of (\d+) public functions", page)[1])
    calls = int(re.search(r"More than ([\d,]+) calls", page)[1].replace(",", ""))
    assert len(ROWS) >= functions and sum(len(list(bad(row))) for row in ROWS.values()) > calls


def test_one_example_a_run_needs_an_axis_for_it():
    """Two examples are two common ones, unless each run is said to have its own."""
    assert STACK(X[:2]).shape == (2, 2, 3)
    for stack, x in ((STACK, X[:2]), (ONE, X[:1]), (STACK, X[0])):
        with pytest.raises(ValueError, match=r"x must be \(. B, ...\) of each run|x must be \(\d, B, ...\)"):
            stack(x, own=True)
    with pytest.raises(ValueError, match="x must be torch.float64 and not empty, got torch.float32"):
        STACK(X.float())


RATES = st.floats(allow_nan=True, allow_infinity=True)


@given(lr=RATES, factor=RATES, t=st.one_of(st.integers(-2, 10**6), st.floats()), steps=st.integers(-1, 50))
def test_a_scheduled_rate_is_a_rate_or_refused(lr, factor, t, steps):
    makers = (
        lambda: nc.Constant(lr),
        lambda: nc.StepDecay(lr, (1, 2, 7), factor),
        lambda: nc.Cosine(lr, steps),
        lambda: nc.Exponential(lr, factor),
    )
    for make in makers:
        try:
            schedule = make()
            value, log = schedule(t), schedule.log(t)
        except ValueError as error:
            assert " must " in str(error) and " got " in str(error)
            continue
        assert 0 <= value < math.inf and not math.isnan(log) and log < math.inf


@given(lr=RATES, weight_decay=RATES, momentum=RATES, steps=st.integers(-1, 20))
def test_an_equivalent_rate_has_a_logarithm_or_is_refused(lr, weight_decay, momentum, steps):
    rest = weight_decay, momentum
    makers = (
        lambda: nc.equivalent_schedule(lr, *rest, steps=steps),
        lambda: nc.exponential_lr(lr, *rest, steps=steps),
        lambda: nc.texp([(lr, steps), (lr / 2, 3)], *rest),
    )
    for make in makers:
        try:
            found = make()
        except ValueError as error:
            assert " must " in str(error) and " got " in str(error)
            continue
        assert np.isfinite(found.log_scale).all() and not np.isnan(found.log_lr).any()
        assert (found.log_lr < math.inf).all() and (np.isfinite(found.log_lr) | (lr == 0)).all()


def test_a_strange_record_in_an_optimizer_is_refused():
    """The gauge's numbers travel in the optimizer's state; ExpLR looks at them as they arrive."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([{"params": [weight], "scale_invariant": True}], lr=0.1, weight_decay=0.1)
    exp_lr = nc.ExpLR(optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    for strange in ({"x": NAN}, {"x": 1.0}, {**state["param_groups"][0]["exp_lr"], "x": 0.0}, "x"):
        state["param_groups"][0]["exp_lr"] = strange
        with pytest.raises((TypeError, ValueError), match="state must be the record of a gauge, got"):
            optimizer.load_state_dict(copy.deepcopy(state))
        assert exp_lr.scale() == 1.0


INPUTS = torch.randn(16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
BATCH, CROSS = (INPUTS, torch.arange(16) % 3), nn.functional.cross_entropy


def small_net():
    torch.manual_seed(0)
    layers = nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
    return nn.Sequential(*layers).double()


def norm_after_three_steps(model):
    weight, *rest = model.parameters()
    groups = [{"params": [weight], "scale_invariant": True}, {"params": rest}]
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.01)
    nc.ExpLR(optimizer, model)
    for _ in range(3):
        optimizer.zero_grad()
        CROSS(model(INPUTS), BATCH[1]).backward()
        optimizer.step()
    return float(weight.detach().norm())


def levels(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return [f.level for f in nc.diagnose(model, optimizer, BATCH, loss_fn=CROSS, steps=3).findings]


def degrees(model):
    return [*nc.norm_input_degrees(model, [[next(model.parameters())]], (INPUTS,)).values()]


READERS = {
    "scale_invariance": lambda m: [x.verdict for x in nc.scale_invariance(m, CROSS, BATCH).tensors.values()],
    "scaling_symmetries": lambda m: nc.scaling_symmetries(m, BATCH).exponents.tolist(),
    "norm_input_degrees": degrees,
    "ExpLR": norm_after_three_steps,
    "diagnose": levels,
    "ntk_top_eigenvalue": lambda m: nc.ntk_top_eigenvalue(m, INPUTS).value,
    **{
        method: lambda m, method=method: nc.hessian_top_eigenvalue(m, CROSS, BATCH, method).value
        for method in ("double_backward", "jvp_grad", "finite_difference")
    },
}
"""What the core reads off a model."""
SCRIPTS = {
    "scripted": torch.jit.script,
    "traced": lambda net: torch.jit.trace(net, INPUTS),
    "a scripted part": lambda net: nn.Sequential(torch.jit.script(net)),
}
WRAPPERS = [lambda net: torch.compile(net, backend="eager"), nn.DataParallel]


@pytest.mark.parametrize("reader", READERS)
def test_torchscript_is_refused_and_wrappers_in_python_change_nothing(reader, monkeypatch):
    """TorchScript's second derivatives, taken forward, were 0 in the first calls and right in later ones."""
    parallel = importlib.import_module("torch.nn.parallel.data_parallel")
    monkeypatch.setattr(
        parallel, "_get_available_device_type", lambda: None
    )  # it would take the simulated one
    read, found = READERS[reader], READERS[reader](small_net())
    for name, wrap in SCRIPTS.items():
        with pytest.raises(TypeError, match="model must be in Python, got TorchScript"):
            pytest.fail(f"{name}: {read(wrap(small_net()))}")
    for wrap in WRAPPERS:
        again = read(wrap(small_net()))
        assert again == (found if isinstance(found, list) else pytest.approx(found, rel=1e-9))
