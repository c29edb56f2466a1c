"""ExpLR on stock optimizers: the second run is torch's own, with weight decay."""

import copy
import io
import math

import million_steps
import pytest
import torch
from helpers import VISIBLE
from nets import batches, eval_gap, groups, logit_gap, net, pair, step
from torch import nn
from torch.optim import SGD, AdamW, lr_scheduler

import normcore as nc

STEPS = 30
GAP = 1e-9
"""Float64 logits after at most 100 steps: rounding of 1e-16, amplified by the training itself."""

HARD = dict(lr=0.1, weight_decay=1e-2)  # lr*wd = 1e-3, 40 % of the critical value at momentum 0.9
OPTIMIZERS = {
    "sgd": lambda g: SGD(g, **HARD),
    "momentum": lambda g: SGD(g, momentum=0.9, **HARD),
    "momentum fused": lambda g: SGD(g, momentum=0.9, fused=True, **HARD),
    "dampening": lambda g: SGD(g, momentum=0.9, dampening=0.5, **HARD),
    "nesterov": lambda g: SGD(g, momentum=0.9, nesterov=True, **HARD),
    "tensor lr": lambda g: SGD(g, lr=torch.tensor(0.1, dtype=torch.float64), momentum=0.9, weight_decay=1e-2),
    "adamw": lambda g: AdamW(g, lr=0.01, weight_decay=0.3),
    "adamw fused": lambda g: AdamW(g, lr=0.01, weight_decay=0.3, fused=True),
    "amsgrad, large eps": lambda g: AdamW(g, lr=0.01, weight_decay=0.3, amsgrad=True, eps=1e-2),
}
SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 12, 0.3),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(
        o, max_lr=0.1, total_steps=STEPS + 1, base_momentum=0.7, max_momentum=0.9
    ),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + 0.1 * t)),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=10), lr_scheduler.ExponentialLR(o, 0.95)], [10]
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
def test_same_function_as_the_run_with_weight_decay(name, norm):
    models, optimizers = pair(OPTIMIZERS[name], norm=norm, eps=1e-2)
    nc.ExpLR(optimizers[1], models[1])
    assert logit_gap(models, optimizers, STEPS) < GAP
    assert (
        models[1][0].weight.detach().norm() > 1.02 * models[0][0].weight.detach().norm()
    )  # another gauge, not the same run


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", ["momentum", "nesterov", "adamw"])
def test_schedulers_work_in_ordinary_units(scheduler, name):
    models, optimizers = pair(OPTIMIZERS[name])
    nc.ExpLR(optimizers[1], models[1])
    schedulers = [SCHEDULERS[scheduler](o) for o in optimizers]
    assert logit_gap(models, optimizers, STEPS, schedulers=schedulers) < GAP
    for group, twin in zip(*(o.param_groups for o in optimizers), strict=True):
        assert twin.keys() - group.keys() <= {"exp_lr"}  # the gauge's numbers, to be saved with the group
        assert all(twin[key] == value for key, value in group.items() if key != "params")


def test_weight_decay_schedule():
    def each(t, optimizers):
        for optimizer in optimizers:
            optimizer.param_groups[0]["weight_decay"] = 0.02 * t / STEPS

    models, optimizers = pair(OPTIMIZERS["momentum"])
    nc.ExpLR(optimizers[1], models[1])
    assert logit_gap(models, optimizers, STEPS, each=each) < GAP


def test_controls_what_happens_without_each_part():
    models, optimizers = pair(OPTIMIZERS["momentum"], eps=1e-2)
    nc.ExpLR(optimizers[1])  # eps and running statistics not co-scaled
    assert logit_gap(models, optimizers, STEPS) > VISIBLE

    models, optimizers = pair(
        OPTIMIZERS["momentum"]
    )  # the rates alone, from the root of Theorem 2.9, buffer untouched
    optimizers[1].param_groups[0]["weight_decay"] = 0.0
    log_alpha = math.log(nc.growth_factor(0.1, 1e-2, 0.9))

    def each(t, optimizers):
        optimizers[1].param_groups[0]["lr"] = 0.1 * math.exp(-(2 * t + 1) * log_alpha)

    assert logit_gap(models, optimizers, STEPS, each=each) > VISIBLE

    models, optimizers = pair(
        OPTIMIZERS["momentum"]
    )  # the head is not scale-invariant, so converting it changes the function
    optimizers[1].param_groups[1]["scale_invariant"] = True
    nc.ExpLR(optimizers[1])
    assert logit_gap(models, optimizers, STEPS) > VISIBLE


@pytest.mark.parametrize("name", ["momentum", "nesterov", "dampening", "adamw"])
def test_attach_and_detach_in_the_middle_of_a_run(name):
    models, optimizers = pair(OPTIMIZERS[name], eps=1e-2)
    assert logit_gap(models, optimizers, 20) == 0.0
    exp_lr = nc.ExpLR(optimizers[1], models[1])
    assert logit_gap(models, optimizers, 30, skip=20) < GAP
    exp_lr.detach()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-8)
        for key, value in optimizers[0].state[p].items():
            torch.testing.assert_close(value, optimizers[1].state[q][key], rtol=1e-7, atol=1e-8)
    assert [m.eps for m in models[1] if hasattr(m, "eps")] == [1e-2, 1e-2]
    torch.testing.assert_close(models[0][1].running_var, models[1][1].running_var, rtol=1e-8, atol=0)
    assert logit_gap(models, optimizers, 20, skip=50) < 1e-7  # 70 steps
    assert optimizers[1].param_groups[0]["weight_decay"] == optimizers[0].param_groups[0]["weight_decay"]


@pytest.mark.parametrize("nesterov", [False, True])
def test_past_the_critical_point(nesterov):
    models, optimizers = pair(lambda g: SGD(g, lr=0.1, weight_decay=0.3, momentum=0.9, nesterov=nesterov))
    nc.ExpLR(optimizers[1], models[1])
    assert logit_gap(models, optimizers, 50) < GAP
    resets = nc.equivalent_schedule(0.1, 0.3, 0.9, nesterov=nesterov, steps=50).corrections
    assert len(resets) >= 3


def run_pair_of_rebasings(dtype, make_optimizer, steps):
    """Two ExpLR runs, with and without rebasing; returns models and ExpLRs."""
    models, optimizers = pair(make_optimizer, dtype=dtype)
    runs = [
        nc.ExpLR(o, m, rebase=rebase) for o, m, rebase in zip(optimizers, models, [True, False], strict=True)
    ]
    for batch in batches(steps, dtype=dtype):
        outputs = [step(m, o, batch) for m, o in zip(models, optimizers, strict=True)]
        assert torch.equal(*outputs)
    return models, optimizers, runs


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["sgd", "nesterov", "adamw"])
def test_rebasing_is_bit_exact(dtype, kind):
    make = {
        "sgd": lambda g: SGD(g, lr=0.1, weight_decay=0.02, momentum=0.9),
        "nesterov": lambda g: SGD(g, lr=0.1, weight_decay=0.02, momentum=0.9, nesterov=True),
        "adamw": lambda g: AdamW(g, lr=0.02, weight_decay=1.0, eps=1e-6),
    }[kind]
    models, optimizers, (rebased, grown) = run_pair_of_rebasings(dtype, make, 80)
    doublings = rebased.gauges[0].doublings
    assert doublings >= 2 and grown.gauges[0].doublings == 0
    for name in ("0.weight", "3.weight"):
        p, q = (model.get_parameter(name) for model in models)
        assert torch.equal(p * 2.0**doublings, q)
        for key, value in optimizers[0].state[p].items():
            if key != "step":
                power = doublings if key == "momentum_buffer" else 0  # AdamW's moments are the ordinary ones
                assert torch.equal(value * 2.0**-power, optimizers[1].state[q][key]), key
    assert rebased.log_scale() == pytest.approx(grown.log_scale(), rel=1e-14)
    assert rebased.log_lr() == pytest.approx(grown.log_lr(), rel=1e-14)


def test_float32_survives_where_the_weights_alone_would_overflow():
    model = net(dtype=torch.float32)
    optimizer = SGD(groups(model), lr=0.1, weight_decay=0.8, momentum=0.5)  # close to the critical 0.86
    exp_lr = nc.ExpLR(optimizer, model)
    for batch in batches(250, dtype=torch.float32):
        step(model, optimizer, batch)
    assert (
        exp_lr.log_scale() < -math.log(torch.finfo(torch.float32).max) / 2
    )  # the squared norm is out of range
    assert all(p.isfinite().all() for p in model.parameters())
    assert 0.5 <= exp_lr.gauges[0].x < 1.0


class Drifting(million_steps.Exponential):
    """The control: a gauge that loses one part in 10^5 a step."""

    def step(self, c):
        super().step(c)
        self.exp_lr.gauges[0].x *= 1 - 1e-5


@pytest.mark.slow
def test_many_steps_in_float32_are_the_run_in_float64():
    """The weights alone would end at e^88. `million_steps.py` takes a million steps, of which these are the first."""
    steps = 3000
    *_, (_, (plain, exponential), run) = million_steps.compare(steps)
    eps = torch.finfo(torch.float32).eps
    assert (plain < 10 * eps).all() and (exponential < 10 * eps).all()
    log_x, log_before = million_steps.log_scale(steps), million_steps.log_scale(steps - 1)
    rounding = steps * torch.finfo(torch.float64).eps
    assert abs(run.exp_lr.log_scale() - log_x) < rounding
    assert abs(run.exp_lr.log_lr() - (math.log(million_steps.LR) - log_x - log_before)) < 3 * rounding
    *_, (_, (_, drifted), _) = million_steps.compare(steps, Drifting)
    assert (drifted > 1000 * eps).all()


@pytest.mark.parametrize("name", ["momentum", "nesterov", "adamw"])
def test_state_dict_round_trip_is_bit_exact(name):
    model = net()
    optimizer = OPTIMIZERS[name](groups(model))
    exp_lr, scheduler = nc.ExpLR(optimizer, model), None
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 200)
    stream = list(batches(60))
    for batch in stream[:30]:
        step(model, optimizer, batch, scheduler)
    file = io.BytesIO()
    torch.save([o.state_dict() for o in (model, optimizer, exp_lr, scheduler)], file)
    for batch in stream[30:]:
        step(model, optimizer, batch, scheduler)

    twin = net(seed=5)
    twin_optimizer = OPTIMIZERS[name](groups(twin))
    twin_exp_lr = nc.ExpLR(twin_optimizer, twin)
    twin_scheduler = lr_scheduler.CosineAnnealingLR(twin_optimizer, 200)
    file.seek(0)
    for thing, state in zip(
        (twin, twin_optimizer, twin_exp_lr, twin_scheduler), torch.load(file, weights_only=True), strict=True
    ):
        thing.load_state_dict(state)
    for batch in stream[30:]:
        step(twin, twin_optimizer, batch, twin_scheduler)
    for key, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key]), key
    assert exp_lr.state_dict() == twin_exp_lr.state_dict()
    assert twin[1].eps == model[1].eps != 1e-5


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler_skips_leave_the_gauge_where_it_is(fused):
    models, optimizers = pair(lambda g: SGD(g, momentum=0.9, fused=fused, **HARD))
    exp_lr = nc.ExpLR(optimizers[1], models[1])
    overflows = (
        (11,) if fused else (0, 11)
    )  # torch's own fused SGD turns NaN when its very first step overflows
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in models]
    scales = []
    for t, (x, y) in enumerate(batches(30)):
        for model, optimizer, scaler in zip(models, optimizers, scalers, strict=True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            scaler.scale(loss * (math.inf if t in overflows else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
        scales.append(exp_lr.log_scale())
    assert scales[11] == scales[10] != scales[9]
    assert eval_gap(models) < GAP


def test_gradient_clipping_in_ordinary_units():
    models, optimizers = pair(OPTIMIZERS["momentum"])
    exp_lr = nc.ExpLR(optimizers[1], models[1])
    clipped = 0
    for x, y in batches(STEPS):
        norms = []
        for model, optimizer, clip in zip(
            models,
            optimizers,
            [lambda n, m=models[0]: nn.utils.clip_grad_norm_(m.parameters(), n), exp_lr.clip_grad_norm_],
            strict=True,
        ):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            norms.append(float(clip(0.5)))
            optimizer.step()
        clipped += norms[0] > 0.5
        assert norms[0] == pytest.approx(norms[1], rel=1e-8)
    assert clipped > 10
    assert eval_gap(models) < GAP


def test_value_clipping_in_ordinary_units():
    models, optimizers = pair(OPTIMIZERS["sgd"])
    exp_lr = nc.ExpLR(optimizers[1], models[1])
    for x, y in batches(STEPS):
        for model, optimizer, clip in zip(
            models,
            optimizers,
            [lambda v: nn.utils.clip_grad_value_(models[0].parameters(), v), exp_lr.clip_grad_value_],
            strict=True,
        ):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            clip(0.01)
            optimizer.step()
    assert eval_gap(models) < GAP


@pytest.mark.parametrize("attached", [0, 6])
@pytest.mark.parametrize("name", ["momentum", "nesterov", "adamw"])
def test_parameters_without_gradient_stay_where_they_are(name, attached):
    """Each hidden weight sits out some steps, the first one under ExpLR included, with a buffer that it has by then or
    not: torch leaves weight and buffer alone."""
    models, optimizers = pair(OPTIMIZERS[name])
    for t, (x, y) in enumerate(batches(40)):
        if t == attached:
            nc.ExpLR(optimizers[1], models[1])
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            if t % 3 == 0:
                model[3].weight.grad = None
            if t % 5 == 1:
                model[0].weight.grad = None
            optimizer.step()
    assert eval_gap(models) < GAP


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sparse_gradients(momentum):
    """A sparse embedding in front of a norm, past the critical point, against the dense run with weight
    decay."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Embedding(7, 8), nn.LayerNorm(8, eps=0.0), nn.Linear(8, 3)).double()
    sparse = copy.deepcopy(dense)
    sparse[0].sparse = True
    optimizers = []
    for model in (dense, sparse):
        tagged = [
            {"params": model[0].weight, "scale_invariant": True},
            {"params": model[2].parameters(), "weight_decay": 0.0},
        ]
        optimizers.append(SGD(tagged, lr=0.1, weight_decay=0.3, momentum=momentum))
    nc.ExpLR(optimizers[1])
    for t in range(40):
        x = torch.randint(7, (5,), generator=torch.Generator().manual_seed(t))
        for model, optimizer in zip((dense, sparse), optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), x % 3).backward()
            optimizer.step()
    x = torch.arange(7)
    assert float((dense(x) - sparse(x)).detach().abs().max()) < GAP


def test_a_closure_works():
    models, optimizers = pair(OPTIMIZERS["nesterov"])
    nc.ExpLR(optimizers[1], models[1])
    for x, y in batches(30):
        for model, optimizer in zip(models, optimizers, strict=True):

            def closure(model=model, optimizer=optimizer):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
    assert eval_gap(models) < GAP


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt("Ctrl-C")])
@pytest.mark.parametrize("name", ["momentum", "nesterov", "adamw"])
def test_a_step_that_raises_gives_the_group_back(name, error):
    models, optimizers = pair(OPTIMIZERS[name])
    nc.ExpLR(optimizers[1], models[1])

    def fail():
        raise error

    logit_gap(models, optimizers, 5)
    with pytest.raises(type(error), match=str(error)):
        optimizers[1].step(fail)
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] *= 0.5
    assert logit_gap(models, optimizers, 20, skip=5) < GAP
    hyper = [{k: g[k] for k in ("lr", "weight_decay")} for o in optimizers for g in o.param_groups[:1]]
    assert hyper[0] == hyper[1]


def test_log_scale_and_log_lr_follow_the_schedule():
    models, optimizers = pair(OPTIMIZERS["momentum"])
    exp_lr = nc.ExpLR(optimizers[1], models[1])
    with pytest.raises(ValueError, match="log_lr must be read after a step"):
        exp_lr.log_lr()
    logit_gap(models, optimizers, STEPS)
    schedule = nc.equivalent_schedule(0.1, 1e-2, 0.9, steps=STEPS)
    assert exp_lr.log_scale() == pytest.approx(schedule.log_scale[-1], rel=1e-12)
    assert exp_lr.log_lr() == pytest.approx(schedule.log_lr[-1], rel=1e-12)
    with pytest.raises(ValueError, match=r"group must be the index of a tagged group, one of \[0\], got 1"):
        exp_lr.log_lr(1)


def test_a_rate_of_zero():
    models, optimizers = pair(OPTIMIZERS["momentum"])
    exp_lr = nc.ExpLR(optimizers[1], models[1])
    logit_gap(models, optimizers, 5)
    scale = exp_lr.log_scale()
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = 0.0
    assert logit_gap(models, optimizers, 5, skip=5) < GAP
    assert exp_lr.log_lr() == -math.inf and exp_lr.log_scale() == scale


def test_a_state_saved_with_the_model_is_taken_without_it_and_the_reverse():
    models, optimizers = pair(OPTIMIZERS["sgd"], norm="layer", eps=0.0)
    with_model, without = nc.ExpLR(optimizers[0], models[0]), nc.ExpLR(optimizers[1])
    step(models[0], optimizers[0], next(batches(1)))
    state = with_model.state_dict()
    without.load_state_dict(state)
    assert without.scale() == with_model.scale() < 1.0 and without.state_dict()["norms"] is None
    with_model.load_state_dict(without.state_dict())
    assert with_model.state_dict() == state


def test_ordinary_gradients_where_there_is_none():
    model = net()
    exp_lr = nc.ExpLR(OPTIMIZERS["sgd"](groups(model)), model)
    with exp_lr.ordinary_gradients():
        assert all(p.grad is None for p in model.parameters())


def test_follow_runs_a_computed_schedule():
    models, optimizers = pair(OPTIMIZERS["nesterov"], norm="layer", eps=0.0)
    schedule = nc.equivalent_schedule(0.1, 1e-2, 0.9, nesterov=True, steps=STEPS)
    assert logit_gap(models, optimizers, STEPS, each=lambda t, o: nc.follow(o[1], schedule, t)) < GAP


def test_two_groups_with_their_own_hyper_parameters():
    def make(model_groups):
        first, rest = model_groups
        a, b = first["params"]
        return SGD(
            [{**first, "params": [a]}, {**first, "params": [b], "lr": 0.05, "weight_decay": 0.03}, rest],
            momentum=0.9,
            **HARD,
        )

    models, optimizers = pair(make, eps=1e-2)
    exp_lr = nc.ExpLR(optimizers[1], models[1])
    assert logit_gap(models, optimizers, STEPS) < GAP
    assert exp_lr.log_scale(0) != exp_lr.log_scale(1)


def test_warns_about_a_tag_that_is_wrong():
    model = net()
    optimizer = SGD([{"params": list(model.parameters()), "scale_invariant": True}], **HARD)
    with pytest.warns(UserWarning, match=r"group 0 is tagged scale_invariant=True but is not: defect"):
        nc.ExpLR(optimizer, model, loss_fn=nn.functional.cross_entropy, batch=next(batches(1)))


def test_no_warning_for_right_tags(recwarn):
    model = net()
    nc.ExpLR(SGD(groups(model), **HARD), model, loss_fn=nn.functional.cross_entropy, batch=next(batches(1)))
    assert not recwarn.list


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: SGD([p], lr=0.1), ValueError, "must have a group with scale_invariant=True, got none"),
        (
            lambda p: torch.optim.Adam([{"params": [p], "scale_invariant": True}], weight_decay=0.1),
            TypeError,
            "coupled L2|L2 term enters",
        ),
        (lambda p: torch.optim.LBFGS([p]), TypeError, "got LBFGS: no gauge is known"),
        (lambda p: torch.optim.RMSprop([{"params": [p], "scale_invariant": True}]), TypeError, "got RMSprop"),
    ],
)
def test_refuses_what_it_cannot_convert(make, error, message):
    with pytest.raises(error, match=message):
        nc.ExpLR(make(nn.Parameter(torch.ones(3))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(lr=-0.1), r"lr must be finite and >= 0, got -0.1"),
        (dict(lr=math.nan), r"lr must be finite and >= 0, got nan"),
        (dict(momentum=1.0), r"momentum must be in \[0, 1\), got 1.0"),
        (dict(weight_decay=20.0), r"such that 1 - lr\*weight_decay > 0, got 20.0"),
        (dict(momentum=0.0), r"momentum must stay > 0 once a momentum buffer exists"),
    ],
)
def test_bad_hyper_parameters_are_refused_before_anything_moves(change, message):
    model = net()
    optimizer = SGD(groups(model), momentum=0.9, **HARD)
    nc.ExpLR(optimizer, model)
    step(model, optimizer, next(batches(1)))
    before = copy.deepcopy(model.state_dict())
    optimizer.param_groups[0].update(change)
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_load_state_dict_refuses_a_foreign_state():
    optimizer = SGD(groups(net()), **HARD)
    exp_lr = nc.ExpLR(optimizer)
    with pytest.raises(ValueError, match="state must be the state_dict of an ExpLR .*KeyError"):
        exp_lr.load_state_dict({})
    with pytest.raises(ValueError, match=r"version, groups must be 2, \[0\], got 2, \[3\]"):
        exp_lr.load_state_dict({"version": 2, "groups": {3: {}}})
