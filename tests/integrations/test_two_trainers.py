"""The same recipes on two processes, each with batches of its own: the run with ExpLR is the one with weight decay."""

from pathlib import Path

import pytest
import torch
from launch import once, torchrun

GAP, VISIBLE = 1e-9, 1e-5
"""Float64, a dozen steps: rounding of 1e-16, amplified by the training itself."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of each process."""
    for name in ("transformers", "accelerate", "lightning"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install -e '.[integrations]'")
    script = Path(__file__).with_name("two_trainers.py")
    folder = once(tmp_path_factory, "two_trainers", lambda folder: torchrun(script, folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("trainer", ["Hugging Face", "accelerate", "Lightning"])
def test_two_processes(results, trainer):
    for ours in results:
        gaps = {
            attempt: max(
                float((a.double() - b.double()).abs().max())
                for a, b in zip(ours[trainer, "plain"], ours[trainer, attempt], strict=True)
            )
            for attempt in ("ExpLR", "without the model")
        }
        assert gaps["ExpLR"] < GAP
        assert gaps["without the model"] > VISIBLE
    # they have shared their gradients, and not only run side by side
    first, second = (ours[trainer, "ExpLR"] for ours in results)
    assert float((first[0].double() - second[0].double()).abs().max()) < GAP


def test_flat_weights_are_refused(results):
    assert results[0]["flat"] == "optimizer must hold whole weights, or those of fully_shard, got flat ones"
