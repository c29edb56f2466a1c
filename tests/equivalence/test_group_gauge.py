"""The gauge of one group: what it does to weights and buffers, seen from outside."""

import math

import pytest
import torch
from nets import batches, groups, net, step
from torch.optim import SGD

import normcore as nc
from normcore.equivalence.group_gauge import GroupGauge, is_moved, numbers_in, scale_buffers, shift_buffer


def sgd(**options):
    """A one-weight SGD with its gauge."""
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = SGD([weight], **{"lr": 0.1, "weight_decay": 0.5, "momentum": 0.5, **options})
    return weight, optimizer, GroupGauge(optimizer, 0)


def test_plan_changes_nothing_and_gives_the_first_rate():
    weight, optimizer, gauge = sgd()
    plan = gauge.plan()
    assert plan.lr == pytest.approx(0.1 / (1 - 0.05), rel=1e-15)
    assert optimizer.param_groups[0]["lr"] == 0.1 and gauge.x == 1.0 and weight.tolist() == [3.0, 4.0]


def test_enter_and_leave():
    _, optimizer, gauge = sgd()
    group = optimizer.param_groups[0]
    gauge.enter(gauge.plan())
    assert group["weight_decay"] == 0.0 and group["lr"] > 0.1
    gauge.leave()
    assert group["weight_decay"] == 0.5 and group["lr"] == 0.1
    assert gauge.x == pytest.approx(0.95) and gauge.ratio == pytest.approx(0.5 / 0.95)


def test_rebase_is_a_power_of_two():
    weight, optimizer, gauge = sgd()
    optimizer.state[weight]["momentum_buffer"] = torch.tensor([1.0, 2.0], dtype=torch.float64)
    gauge.x = 0.2
    gauge.rebase()
    assert gauge.x == 0.8 and gauge.doublings == 2
    assert weight.tolist() == [0.75, 1.0]
    assert optimizer.state[weight]["momentum_buffer"].tolist() == [4.0, 8.0]
    assert gauge.log_scale == pytest.approx(math.log(0.2))
    gauge.rebase()
    assert gauge.doublings == 2  # nothing to do


def test_scale_buffers_takes_the_degree_as_power():
    weight, optimizer, _ = sgd()
    optimizer.state[weight] = {
        "exp_avg": torch.ones(2),
        "exp_avg_sq": torch.ones(2),
        "step": torch.tensor(5.0),
    }
    scale_buffers(optimizer, [weight], 3.0)
    assert optimizer.state[weight]["exp_avg"].tolist() == [3.0, 3.0]
    assert optimizer.state[weight]["exp_avg_sq"].tolist() == [9.0, 9.0]
    assert optimizer.state[weight]["step"] == 5.0


def test_shift_buffer_creates_it_when_there_is_none():
    weight, optimizer, _ = sgd()
    shift_buffer(optimizer, [weight], -2.0)
    assert optimizer.state[weight]["momentum_buffer"].tolist() == [-6.0, -8.0]
    shift_buffer(optimizer, [weight], 1.0)
    assert optimizer.state[weight]["momentum_buffer"].tolist() == [-3.0, -4.0]


def test_without_rebasing_the_rate_leaves_the_range_with_an_error():
    _, _, gauge = sgd()
    gauge.x = 1e-170
    with pytest.raises(OverflowError, match="the exponential rate leaves the float range at log x_t = -391"):
        gauge.plan()


def test_dampening_with_a_late_parameter_is_refused():
    weight, late = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = SGD([weight, late], lr=0.1, weight_decay=0.1, momentum=0.9, dampening=0.5)
    optimizer.state[weight]["momentum_buffer"] = torch.zeros(2)
    with pytest.raises(
        ValueError,
        match="dampening must be 0 while a parameter of the group has no momentum buffer yet, got 0.5",
    ):
        GroupGauge(optimizer, 0).plan()


def test_nesterov_needs_a_smaller_decay():
    _, _, gauge = sgd(weight_decay=7.0, nesterov=True)
    with pytest.raises(
        ValueError,
        match=r"weight_decay must keep lr\*weight_decay\*\(1\+momentum\) < 1, got lr=0.1, weight_decay=7.0",
    ):
        gauge.plan()


def test_gradients_that_nobody_touches_reach_the_optimizer_bit_for_bit():
    """The run without weight decay is stock SGD at the gauge's rates, to the last bit, in float32 too."""
    runs = []
    for attached in (True, False):
        model = net("layer", dtype=torch.float32, eps=0.0)
        optimizer = SGD(groups(model), lr=0.1, momentum=0.9, weight_decay=0.02 if attached else 0.0)
        clock = GroupGauge(SGD(groups(net()), lr=0.1, momentum=0.9, weight_decay=0.02), 0)
        if attached:
            nc.ExpLR(optimizer, model, rebase=False)
        for batch in batches(20, dtype=torch.float32):
            plan = clock.plan()
            if not attached:
                optimizer.param_groups[0]["lr"] = plan.lr
            step(model, optimizer, batch)
            clock.enter(plan), clock.leave()
        runs.append([model[i].weight.detach() for i in (0, 3)])
    assert clock.x < 0.9
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


def test_a_gauge_is_moved_by_its_scale_or_by_its_ratio():
    still = {"x": 1.0, "ratio": 0.0, "doublings": 0}
    assert not is_moved(still)
    assert is_moved({**still, "x": 0.5}) and is_moved({**still, "ratio": 0.1})


@pytest.mark.parametrize(
    "damage",
    [{"x": x} for x in (0.0, -0.5, math.inf, math.nan, "1")]
    + [{"ratio": ratio} for ratio in (math.inf, None)]
    + [{"doublings": doublings} for doublings in (-1, 0.5)],
)
def test_a_record_has_a_positive_scale_a_finite_ratio_and_a_count(damage):
    record = {"x": 0.75, "ratio": -0.1, "doublings": 0}
    assert numbers_in(record) == (0.75, -0.1, 0) and numbers_in({}) == (1.0, 0.0, 0)
    for wrong in ({**record, **damage}, {k: v for k, v in record.items() if k not in damage}):
        with pytest.raises(
            ValueError, match="state must be the record of a gauge, got one that cannot be read"
        ):
            numbers_in(wrong)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_parameter_whose_gradients_come_late_is_as_with_weight_decay(momentum, weight_decay):
    target = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    ends, buffers = [], []
    for attached in (False, True):
        early, late = (torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
        tagged = [{"params": [early, late], "scale_invariant": True}]
        optimizer = SGD(tagged, lr=0.1, weight_decay=weight_decay, momentum=momentum)
        exp_lr = nc.ExpLR(optimizer) if attached else None
        for t in range(6):
            optimizer.zero_grad()
            for weight in [early] if t in (0, 1, 3) else [early, late]:
                (target @ weight / weight.norm()).backward()
            optimizer.step()
            if t == 1:
                buffers.append(optimizer.state[late].get("momentum_buffer"))
        ends.append((exp_lr.scale() if exp_lr else 1.0) * torch.stack([early, late]).detach())
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-12, atol=0)
    assert buffers[0] is None  # and where there is nothing to stand for, ExpLR makes no buffer either
    assert (buffers[1] is None) == (momentum == 0.0 or weight_decay == 0.0)


def test_without_momentum_there_is_no_ratio_and_no_buffer():
    weight, optimizer, gauge = sgd(momentum=0.0)
    for _ in range(2):
        weight.grad = torch.ones_like(weight)
        gauge.enter(gauge.plan())
        optimizer.step()
        gauge.leave()
        assert gauge.ratio == 0.0 and optimizer.state[weight].get("momentum_buffer") is None
    assert gauge.x == pytest.approx(0.95**2, rel=1e-15)
