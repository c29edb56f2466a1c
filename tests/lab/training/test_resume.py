"""A killed run resumes to the same bits; a run of another kind is not continued."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import normcore as nc
from normcore.lab import load_dataset, mlp, train, trainable, weight_norm, weight_vector

DATA = load_dataset("digits", dtype=torch.float64)
BATCHES = DATA.batches(40, 16)


def go(folder, batches=BATCHES, *, seed=0, lr=0.1, interrupt_at=None, **options):
    """Train the same small net, perhaps interrupted; the net and its history."""
    net = mlp((64, 16, 10), seed=seed, dtype=torch.float64)
    optimizer = torch.optim.SGD(trainable(net), lr=lr, momentum=0.9, weight_decay=1e-2)

    def stop(t):
        if t == interrupt_at:
            raise KeyboardInterrupt

    settings = {"probes": {"norm": weight_norm}, "every": 6, "checkpoint_every": 5, **options}
    return net, train(net, optimizer, batches, before_step=stop, checkpoint=folder, **settings)


def test_twenty_kills_change_no_bit(tmp_path):
    script = Path(__file__).parents[2] / "killed_run.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 20
    killed, whole = (torch.load(tmp_path / f"{name}.pt") for name in ("killed", "whole"))
    assert len(whole["loss"]) == 1500 and torch.isfinite(whole["loss"]).all()
    for name, value in whole.items():
        assert torch.equal(torch.nan_to_num(killed[name]), torch.nan_to_num(value)), name
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["run.pt"]


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


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 1}, "starting weights"),
        ({"lr": 0.2}, "options"),
        ({"batches": DATA.batches(40, 16, seed=1)}, "first batch"),
        ({"probes": {}}, "probes"),
        ({"schedule": nc.texp_plus_plus(0.1, 1e-2, 0.9, steps=40)}, "schedule"),
    ],
)
def test_another_run_is_not_continued(tmp_path, change, what):
    go(tmp_path, batches=BATCHES[:10])
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"belongs to another: .*{what}"):
        go(tmp_path, **change)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


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
