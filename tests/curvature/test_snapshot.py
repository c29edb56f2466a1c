"""A snapshot is a function of its own: it neither moves with the model nor moves it."""

import pytest
import torch
from curvature_nets import make, same_state, state_of
from torch import nn

from normcore.curvature.snapshot import Snapshot, full_precision


def test_calls_leave_the_model_and_do_not_follow_it():
    model, x = make("batch")
    expected, _ = make("batch")
    expected = expected(x)
    before = state_of(model)
    snapshot = Snapshot(model)
    first = snapshot.call(x)
    assert same_state(before, state_of(model)) and torch.equal(first, expected)
    with torch.no_grad():
        for p in model.parameters():
            p += 1.0
    assert torch.equal(snapshot.call(x), first) and not torch.equal(model(x), first)
    assert not first.requires_grad and snapshot.run(lambda model: model(x)).requires_grad


def test_random_draws_repeat_and_are_given_back():
    model = nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5))
    x, state = torch.ones(2, 3), torch.get_rng_state()
    snapshot = Snapshot(model, seed=4)
    assert torch.equal(snapshot.call(x), snapshot.call(x)) and torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(Snapshot(model, seed=5).call(x), snapshot.call(x))


def test_flat_vectors_find_their_names():
    model, _ = make("layer")
    model[1].requires_grad_(False)
    snapshot = Snapshot(model)
    named = snapshot.named(torch.arange(snapshot.size))
    assert list(named) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert named["0.bias"].tolist() == list(range(24, 30)) and named["0.bias"].dtype == torch.float64


def test_padding_rows_are_constants_unless_they_are_shared():
    embedding = nn.Embedding(3, 2, padding_idx=1)
    free = Snapshot(embedding).without_padding(torch.ones(6))
    assert free.tolist() == [1, 1, 0, 0, 1, 1]
    tied = nn.ModuleDict({"embed": embedding, "head": nn.Linear(2, 3, bias=False)})
    tied["head"].weight = embedding.weight
    assert Snapshot(tied).without_padding(torch.ones(6)).tolist() == [1] * 6


def test_batch_statistics_are_seen():
    model, x = make("batch")
    untracked = nn.BatchNorm1d(4, track_running_stats=False).double().eval()
    for coupled in (model, untracked):
        with pytest.raises(ValueError, match="while a BatchNorm uses batch statistics"):
            Snapshot(coupled).chunks(x, 5)
    assert [len(chunk) for chunk in Snapshot(model.eval()).chunks(x, 4)] == [4, 4, 2]


def test_no_gpu_is_seeded(monkeypatch):
    model, x = make("layer")
    refuse = lambda seed: pytest.fail("a GPU's generator was seeded")  # noqa: E731
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    with pytest.raises(pytest.fail.Exception):
        torch.manual_seed(0)  # torch's own does
    Snapshot(model).call(x)


def test_full_precision_is_set_and_given_back():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    new = torch.__version__ >= (2, 9)

    def settings():
        places = (cudnn.conv, matmul) if new else (cudnn, matmul)
        return [getattr(place, "fp32_precision" if new else "allow_tf32") for place in places]

    before = settings()
    with full_precision():
        assert settings() == (["ieee"] * 2 if new else [False] * 2)
    assert (
        settings() == before and torch.backends.cudnn.allow_tf32 is True
    )  # the old way of asking still answers


def test_bad_models():
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got int"):
        Snapshot(3)
    with pytest.raises(ValueError, match="model must have a trainable parameter"):
        Snapshot(nn.ReLU())
    with pytest.raises(ValueError, match="trainable parameters must share one real dtype and device"):
        Snapshot(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()))
