"""A killed run resumes to the same bits; a run of another kind is not continued."""

import os
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from launch import script
from torch.nn.functional import cross_entropy

import normcore as nc
from normcore.lab import (
    load_checkpoint,
    load_dataset,
    mlp,
    save_checkpoint,
    train,
    trainable,
    weight_norm,
    weight_vector,
)

DATA = load_dataset("digits", dtype=torch.float64)
BATCHES = DATA.batches(40, 16)


def sgd(net, lr=0.1):
    return torch.optim.SGD(trainable(net), lr=lr, momentum=0.9, weight_decay=1e-2)


def go(folder, batches=BATCHES, *, seed=0, lr=0.1, interrupt_at=None, **options):
    """Train the same small net, perhaps interrupted; the net and its history."""
    net = mlp((64, 16, 10), seed=seed, dtype=torch.float64)
    optimizer = sgd(net, lr)

    def stop(t):
        if t == interrupt_at:
            raise KeyboardInterrupt

    settings = {"probes": {"norm": weight_norm}, "every": 6, "checkpoint_every": 5, **options}
    if "scheduler" in options:
        settings["scheduler"] = options["scheduler"](optimizer)
    return net, train(net, optimizer, batches, before_step=stop, checkpoint=folder, **settings)


@pytest.mark.slow
def test_twenty_kills_and_two_runs_in_one_folder_change_no_bit(tmp_path):
    deaths = script("killed_run.py", tmp_path)
    assert int(deaths) == 20
    names = ("whole", "killed", "first of two", "second of two")
    whole, *others = (torch.load(tmp_path / f"{name}.pt") for name in names)
    assert len(whole["loss"]) == 600 and torch.isfinite(whole["loss"]).all()
    for other in others:
        for name, value in whole.items():
            assert torch.equal(torch.nan_to_num(other[name]), torch.nan_to_num(value)), name
    assert "run.pt" in [path.name for path in (tmp_path / "killed").iterdir()]
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["run.pt"]


@pytest.mark.parametrize("moment", [0, 3, 5, 23, 39])
def test_an_interrupted_run_goes_on(tmp_path, moment):
    net, whole = go(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", interrupt_at=moment)
    again, history = go(tmp_path / "cut")
    assert torch.equal(weight_vector(net), weight_vector(again))
    np.testing.assert_array_equal(history.loss, whole.loss)
    np.testing.assert_array_equal(history["norm"], whole["norm"])
    assert history.step.tolist() == whole.step.tolist()


def test_a_finished_run_returns_its_record_and_can_be_extended(tmp_path):
    net, whole = go(tmp_path / "whole")
    _, short = go(tmp_path / "short", DATA.batches(22, 16))
    assert short.step.tolist() == [0, 6, 12, 18, 22]
    again, history = go(tmp_path / "short")
    np.testing.assert_array_equal(history.loss, whole.loss)
    assert history.step.tolist() == whole.step.tolist()  # the reading at the old end is not kept
    _, idle = go(tmp_path / "short", interrupt_at=39)  # nothing is left to do, so nothing interrupts
    np.testing.assert_array_equal(idle["norm"], whole["norm"])
    assert torch.equal(weight_vector(net), weight_vector(again))


def test_a_diverged_run_stays_diverged(tmp_path):
    batches = [*BATCHES[:12], (BATCHES[12][0] * torch.nan, BATCHES[12][1]), *BATCHES[13:]]
    _, first = go(tmp_path, batches)
    _, second = go(tmp_path, batches)
    assert first.diverged_at == second.diverged_at == 12
    np.testing.assert_array_equal(first.loss, second.loss)
    np.testing.assert_array_equal(first["norm"], second["norm"])


def smoothed(output, y):
    """Another loss."""
    return cross_entropy(output, y, label_smoothing=0.1)


def scheduled(make):
    return {"scheduler": make}


LOSSES = [
    smoothed,
    lambda output, y: 2 * cross_entropy(output, y),
    partial(cross_entropy, label_smoothing=0.1),
    torch.nn.CrossEntropyLoss(label_smoothing=0.1),
]
COSINE = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=100)
BY_LAMBDA = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda t: 0.99**t)
GROWING = nc.exponential_lr(0.1, 1e-2, 0.9, steps=40)
OTHERS = [
    ({}, {"seed": 1}, "starting weights"),
    ({}, {"lr": 0.2}, "lr of group 0 0.1 instead of 0.2"),
    ({}, {"batches": DATA.batches(40, 16, seed=1)}, "batch 0"),
    ({}, {"batches": [*BATCHES[:1], *DATA.batches(40, 16, seed=1)[1:]]}, "batch 1 .*batch 2"),
    ({}, {"probes": {}}, "probes"),
    ({"probes": {"n": weight_norm}}, {"probes": {"n": lambda net: 2 * weight_norm(net)}}, "probes"),
    ({}, {"schedule": GROWING}, "schedule"),
    ({"schedule": GROWING}, {"schedule": replace(GROWING, corrections={})}, "schedule"),
    *[({}, {"loss_fn": loss}, "loss_fn") for loss in LOSSES],
    ({}, {"autocast": torch.bfloat16}, "autocast None instead of torch.bfloat16"),
    ({}, {"every": 5}, "every 6 instead of 5"),
    (scheduled(COSINE), {}, "parts"),
    (scheduled(COSINE), scheduled(partial(COSINE, T_max=400)), "scheduler"),
    (scheduled(COSINE), scheduled(partial(torch.optim.lr_scheduler.StepLR, step_size=9)), "scheduler"),
    (scheduled(BY_LAMBDA), scheduled(partial(BY_LAMBDA, lr_lambda=lambda t: 0.98**t)), "scheduler"),
]


@pytest.mark.parametrize(("first", "then", "what"), OTHERS)
def test_another_run_is_not_continued(tmp_path, first, then, what):
    go(tmp_path, **{"batches": BATCHES[:10], **first})
    before = (tmp_path / "run.pt").read_bytes()
    with pytest.raises(ValueError, match=f"belongs to another: .*{what}"):
        go(tmp_path, **then)
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]
    assert (tmp_path / "run.pt").read_bytes() == before
    if set(first) == set(then):  # control: the same again is
        assert len(go(tmp_path, **first)[1].loss) == 40


def test_another_before_step_is_not_continued(tmp_path):
    net = [mlp((64, 16, 10), dtype=torch.float64) for _ in range(3)]
    options = {"checkpoint": tmp_path, "checkpoint_every": 5}
    seen = []
    for here, before_step in zip(net[:2], (seen.append, seen.append), strict=True):
        train(here, sgd(here), BATCHES[:10], before_step=before_step, **options)
    with pytest.raises(ValueError, match="belongs to another: .*before_step"):
        train(net[2], sgd(net[2]), BATCHES[:10], before_step=lambda t: seen.append(-t), **options)


def test_fewer_batches_than_were_trained_are_refused(tmp_path):
    go(tmp_path)
    with pytest.raises(ValueError, match="batches must hold the 40 steps that are done, got 22"):
        go(tmp_path, BATCHES[:22])


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("save", [1, 3])
def test_a_save_that_fails_costs_only_what_came_after_the_last_one(tmp_path, monkeypatch, error, save):
    net, whole = go(tmp_path / "whole")
    calls, fsync = [], os.fsync

    def fail(handle):
        calls.append(handle)
        if len(calls) == save:
            raise error
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        go(tmp_path / "cut")
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["run.pt"] * (save > 1)
    again, history = go(tmp_path / "cut")
    assert torch.equal(weight_vector(net), weight_vector(again))
    np.testing.assert_array_equal(history.loss, whole.loss)


def test_a_folder_that_cannot_be_written_is_found_before_the_first_step(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for folder, error in (
        (tmp_path / "file", FileExistsError),
        (tmp_path / "file" / "a", NotADirectoryError),
    ):
        with pytest.raises(error):
            go(folder, interrupt_at=0)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a superuser may write anywhere
    with pytest.raises(PermissionError, match="checkpoint must be a folder that can be written, got"):
        go(tmp_path / "locked", interrupt_at=0)


def test_what_a_kill_in_the_middle_of_a_save_left_is_cleared_away(tmp_path):
    old, new = (tmp_path / f".run.pt.{pid}.part" for pid in (1, 2))
    for part, age in ((old, 7200), (new, 0)):
        part.touch()
        os.utime(part, (time.time() - age,) * 2)
    go(tmp_path)
    assert not old.exists() and new.exists()  # somebody may still be writing the new one


def test_a_damaged_checkpoint_is_named_and_kept(tmp_path):
    go(tmp_path, BATCHES[:10])
    data = bytearray((tmp_path / "run.pt").read_bytes())
    (tmp_path / "run.pt").write_bytes(data[:-5])
    with pytest.raises(ValueError, match="path must be a checkpoint, got .*run.pt"):
        go(tmp_path)
    assert (tmp_path / "run.pt").read_bytes() == data[:-5]


@pytest.mark.parametrize("part", ["model", "optimizer", "recorder", "generators"])
@pytest.mark.parametrize("strange", [None, "x", {}])
def test_a_checkpoint_whose_parts_are_strange_is_named(tmp_path, part, strange):
    """Its checksum is right: whoever wrote it meant it."""
    go(tmp_path, BATCHES[:10])
    state = load_checkpoint(tmp_path / "run.pt")
    if strange is None:
        del state[part]
    else:
        state[part] = strange
    save_checkpoint(tmp_path / "run.pt", state)
    with pytest.raises((TypeError, ValueError), match="state must be "):
        go(tmp_path)


def test_dropout_needs_the_generators(tmp_path):
    def run(folder, moment=None):
        torch.manual_seed(3)
        net = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Flatten(), torch.nn.Linear(64, 10)).double()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def stop(t):
            if t == moment:
                raise KeyboardInterrupt

        return train(net, optimizer, BATCHES, before_step=stop, checkpoint=folder, checkpoint_every=4)

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", 18)
    np.testing.assert_array_equal(run(tmp_path / "cut").loss, whole.loss)
