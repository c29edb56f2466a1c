"""The training loop against a loop written out here."""

import copy
import io
import shutil

import numpy as np
import pytest
import torch
from helpers import Far
from oracles_lab import sgd_losses
from torch.nn.functional import cross_entropy

import normcore as nc
from normcore.lab import (
    cnn,
    direction,
    load_dataset,
    logits_on,
    mlp,
    preresnet,
    train,
    trainable,
    weight_norm,
)
from normcore.lab.training import probes as probes_module

DATA = load_dataset("digits", dtype=torch.float64)


def sgd(net, **options):
    """Stock SGD."""
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2, **options}
    return torch.optim.SGD(trainable(net), **settings)


def test_equals_a_plain_loop():
    net, batches = mlp((64, 16, 10), dtype=torch.float64), DATA.batches(20, 16)
    losses, twin = sgd_losses(net, batches, [0.1] * 20, [1e-2] * 20, [0.9] * 20)
    probes = {"norm": weight_norm, "logits": logits_on(DATA.x_test[:5])}
    history = train(net, sgd(net), batches, probes=probes, every=6)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-12)
    assert history.step.tolist() == [0, 6, 12, 18, 20]
    assert history["norm"].shape == (5,) and history["logits"].shape == (5, 5, 10)
    assert history["norm"][-1] == pytest.approx(weight_norm(twin), rel=1e-12)
    assert history["norm"].dtype == np.float64 and history.diverged_at is None


def test_a_probe_sees_the_model_before_its_step():
    net, batches = mlp((64, 16, 10), dtype=torch.float64), DATA.batches(9, 16)
    norms = [weight_norm(net)]
    for t in range(9):
        norms.append(weight_norm(sgd_losses(net, batches[: t + 1], *[[0.05] * 9] * 3)[1]))
    optimizer = sgd(net, lr=0.05, momentum=0.05, weight_decay=0.05)
    history = train(net, optimizer, batches, probes={"norm": weight_norm}, every=3)
    assert history.step.tolist() == [0, 3, 6, 9]  # the last reading is not doubled
    np.testing.assert_allclose(history["norm"], norms[::3], rtol=1e-12)


def test_a_reading_is_not_overwritten_by_later_steps():
    net = mlp((64, 16, 10), dtype=torch.float64)
    probe = {"w": lambda model: model[1].weight}  # the live tensor itself
    history = train(net, sgd(net), DATA.batches(2, 16), probes=probe)
    assert not np.array_equal(history["w"][0], history["w"][1])


def test_scheduler_and_schedule_are_stepped():
    batches, net = DATA.batches(30, 16), mlp((64, 16, 10), dtype=torch.float64)
    free, late = copy.deepcopy(net), copy.deepcopy(net)
    optimizer = sgd(net)
    rates = nc.StepDecay(0.1, (10, 20)).values(30)
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10, 20])
    train(net, optimizer, batches, scheduler=steps)
    train(free, sgd(free), batches, schedule=nc.texp_plus_plus(rates, 1e-2, 0.9))
    shifted = nc.texp_plus_plus(np.append(rates[1:], rates[-1]), 1e-2, 0.9)
    train(late, sgd(late), batches, schedule=shifted)  # control: each rate a step too early
    assert float((direction(net) - direction(free)).norm()) < 1e-10
    assert float((direction(net) - direction(late)).norm()) > 1e-4


def test_before_step_comes_between_gradient_and_step():
    net, seen = mlp((64, 16, 10)), []

    def before_step(t):
        seen.append((t, float(net[1].weight.grad.norm()) > 0))
        net[1].weight.grad.zero_()

    before = net[1].weight.detach().clone()
    batches = load_dataset("digits").batches(3, 16)
    train(net, sgd(net, weight_decay=0.0), batches, before_step=before_step)
    assert seen == [(0, True), (1, True), (2, True)] and torch.equal(before, net[1].weight)


def diverging(every, steps=20):
    """A net whose loss overflows; the net and its history."""
    net = mlp((64, 16, 10), norm="none", head="trained")
    batches = load_dataset("digits").batches(steps, 16)
    return net, train(net, sgd(net, lr=1e8), batches, probes={"norm": weight_norm}, every=every)


@pytest.mark.parametrize("every", [1, 3, 1000])
def test_a_diverging_run_is_an_outcome(every):
    history = diverging(every)[1]
    stop, before = history.diverged_at, history.step < history.diverged_at
    assert 0 < stop < 19 and len(history.loss) == 20
    assert np.isfinite(history.loss[:stop]).all() and np.isnan(history.loss[stop:]).all()
    assert history.step.tolist() == [*range(0, 20, every), 20] and len(history["norm"]) == len(history.step)
    assert np.isfinite(history["norm"][before]).all() and np.isnan(history["norm"][~before]).all()
    assert stop == diverging(7)[1].diverged_at  # whenever it is looked at


def test_on_a_processor_the_weights_stay_as_they_were_before_the_step_of_divergence():
    net, history = diverging(1000)
    twin = mlp((64, 16, 10), norm="none", head="trained")
    batches = load_dataset("digits").batches(20, 16)[: history.diverged_at]
    assert train(twin, sgd(twin, lr=1e8), batches).diverged_at is None
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))


def meta_run(steps, **options):
    """A run on a device whose numbers cannot be read: how many steps it takes until somebody tries."""
    net, taken = cnn((4, 8), norm="batch").to("meta"), []
    batch = torch.empty(8, 1, 8, 8, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")
    optimizer = torch.optim.SGD(
        [{"params": trainable(net), "scale_invariant": True}], lr=0.1, momentum=0.9, weight_decay=1e-2
    )
    with pytest.raises(NotImplementedError, match="meta tensor"):
        train(net, optimizer, [batch] * steps, before_step=taken.append, **options)
    return len(taken)


def test_a_device_is_not_waited_for_between_readings(monkeypatch):
    schedule = nc.texp_plus_plus(0.1, 1e-2, 0.9, steps=9)
    for options in ({}, {"schedule": schedule}, {"channels_last": True}):
        assert meta_run(9, every=1000, **options) == 9  # looked at when all is done
    assert meta_run(9, every=4) == 4
    monkeypatch.setattr(probes_module, "MOST_WAITING", 6)
    assert meta_run(9, every=1000) == 5  # the loss of step 5 is the sixth


@pytest.mark.parametrize("saves", [1000, 4])
def test_a_device_finds_the_exact_step_later(tmp_path, saves):
    expected = diverging(1)[1]
    net = mlp((64, 16, 10), norm="none", head="trained")
    batches, steps = load_dataset("digits").batches(20, 16), []
    options = {"probes": {"norm": weight_norm}, "every": 1000, "before_step": steps.append}
    options |= {"checkpoint": tmp_path, "checkpoint_every": saves}
    options["loss_fn"] = lambda output, y: cross_entropy(output, y).as_subclass(Far)
    history = train(net, sgd(net, lr=1e8), batches, **options)
    assert history.diverged_at == expected.diverged_at < len(steps) <= expected.diverged_at + saves
    np.testing.assert_array_equal(history.loss, expected.loss)
    again = mlp((64, 16, 10), norm="none", head="trained")
    np.testing.assert_array_equal(train(again, sgd(again, lr=1e8), batches, **options).loss, expected.loss)


def test_the_bar_stays_silent_unless_wanted(monkeypatch):
    net, batches = mlp((64, 16, 10)), load_dataset("digits").batches(3, 4)
    for progress, silent in ((None, True), (False, True), (True, False)):
        stream = io.StringIO()
        monkeypatch.setattr("sys.stderr", stream)
        train(net, sgd(net), batches, progress=progress)
        assert (stream.getvalue() == "") is silent


def test_bfloat16_autocast_rounds_the_products_and_keeps_the_weights():
    batches = load_dataset("digits").batches(20, 64)
    nets = {dtype: mlp((64, 16, 10)) for dtype in (None, torch.bfloat16)}
    losses = {dtype: train(net, sgd(net), batches, autocast=dtype).loss for dtype, net in nets.items()}
    difference = np.abs(losses[torch.bfloat16] - losses[None])
    assert 1e-5 < difference.max() < 0.05
    assert nets[torch.bfloat16][1].weight.dtype == torch.float32


def test_channels_last_is_the_same_run_in_another_order_of_memory():
    batches = DATA.batches(15, 16)
    plain, last = cnn(dtype=torch.float64), cnn(dtype=torch.float64)
    a = train(plain, sgd(plain), batches)
    b = train(last, sgd(last), batches, channels_last=True)
    assert last[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert not plain[3].weight.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-10)


def test_channels_last_is_refused_where_torch_would_write_outside_its_memory():
    batches = load_dataset("digits").batches(3, 16)
    narrow, wide = preresnet(8, width=4), preresnet(8, width=8)
    with pytest.raises(ValueError, match="channels_last must be False .* 1x1 convolution .*fewer than 8"):
        train(narrow, sgd(narrow), batches, channels_last=True)
    assert np.isfinite(train(wide, sgd(wide), batches, channels_last=True).loss).all()


def test_compile_is_asked_for_with_its_mode(monkeypatch):
    calls = []

    def fake_compile(model, mode):
        calls.append(mode)
        return lambda x: model(x)

    monkeypatch.setattr(torch, "compile", fake_compile)
    losses = []
    for option in (False, True, "reduce-overhead"):
        net = mlp((64, 16, 10))
        losses.append(train(net, sgd(net), load_dataset("digits").batches(3, 4), compile=option).loss)
    assert calls == [None, "reduce-overhead"]
    assert np.array_equal(losses[0], losses[1]) and np.array_equal(losses[0], losses[2])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_a_compiled_run_is_the_same_run():
    batches = DATA.batches(10, 16)
    plain, fast = mlp((64, 16, 10), dtype=torch.float64), mlp((64, 16, 10), dtype=torch.float64)
    a, b = train(plain, sgd(plain), batches), train(fast, sgd(fast), batches, compile=True)
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-10)


def test_full_batch_and_any_optimizer():
    net, (x, y) = mlp((64, 16, 10), dtype=torch.float64), (DATA.x_train[:100], DATA.y_train[:100])
    history = train(net, torch.optim.AdamW(trainable(net), lr=1e-2), [(x, y)] * 60)
    assert history.loss[-1] < 0.5 * history.loss[0]
    start = cross_entropy(mlp((64, 16, 10), dtype=torch.float64)(x), y).item()
    assert history.loss[0] == pytest.approx(start, rel=1e-12)


UNFIT = {
    "LBFGS": (lambda o: {"optimizer": torch.optim.LBFGS(o.param_groups[0]["params"])}, "LBFGS, .*'closure'"),
    "on a plateau": (
        lambda o: {"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(o)},
        "scheduler must step without arguments, got a ReduceLROnPlateau, which needs .'metrics'.",
    ),
    "a loader": (
        lambda o: {"batches": torch.utils.data.DataLoader([(DATA.x_train[0], 0)])},
        r"batches must be indexed by step, got a DataLoader: use list\(batches\)",
    ),
    "a generator": (lambda o: {"batches": iter([])}, "batches must be a sequence of pairs"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_the_loop_cannot_serve_is_refused_before_the_first_step(name):
    net, batches = mlp((64, 16, 10)), load_dataset("digits").batches(3, 4)
    before, optimizer = [p.clone() for p in net.parameters()], sgd(net)
    change, message = UNFIT[name]
    with pytest.raises(TypeError, match=message):
        train(**{"model": net, "optimizer": optimizer, "batches": batches, **change(optimizer)})
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_bad_input():
    net, batches = mlp((64, 16, 10)), load_dataset("digits").batches(5, 4)
    for name in ("every", "checkpoint_every"):
        with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
            train(net, sgd(net), batches, **{name: 0})
        with pytest.raises(TypeError, match=f"{name} must be an integer, got 2.5"):
            train(net, sgd(net), batches, **{name: 2.5})
    short = nc.texp_plus_plus(0.1, 1e-2, steps=3)
    with pytest.raises(ValueError, match="at least 5 steps, one for each batch, got 3"):
        train(net, sgd(net), batches, schedule=short)
    with pytest.raises(KeyError, match=r"no probe named 'nrm'; the run recorded \['norm'\]"):
        train(net, sgd(net), batches, probes={"norm": weight_norm})["nrm"]
