"""The same script on one process and, under torchrun, on two."""

import digits_on_two
import pytest
import torch
from helpers import TRAJECTORY, VISIBLE
from launch import of_two_processes

from normcore.lab.training.processes import Part, from_main, is_main, mean_over_ranks, shard, start, wrap


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Where two processes left their results and checkpoints."""
    return of_two_processes(tmp_path_factory, "digits_on_two")


@pytest.fixture(scope="module")
def runs(two, tmp_path_factory):
    """The results of this process alone, and those of each of two."""
    alone = tmp_path_factory.mktemp("alone")
    digits_on_two.main(alone)
    assert not torch.distributed.is_initialized()
    return [torch.load(path, weights_only=True) for path in (alone / "0.pt", two / "0.pt", two / "1.pt")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whole", "resumed", "constant"])
def test_two_processes_give_the_run_of_one(runs, name):
    one, *two = (run[name] for run in runs)
    for ours in two:
        assert set(ours) == set(one)
        for key in set(one) - {"diverged_at"}:
            torch.testing.assert_close(ours[key], one[key], rtol=0, atol=TRAJECTORY, equal_nan=True, msg=key)
    assert len(one["loss"]) == 40 and one["diverged_at"] is None
    assert {"norm", "angle", "swa", "accuracy", "test"} <= set(runs[0]["whole"])


@pytest.mark.slow
def test_both_processes_see_the_same_bits(runs):
    _, first, second = runs
    for name in ("whole", "resumed", "constant", "seeds"):
        for key, value in first[name].items():
            if torch.is_tensor(value):
                assert torch.equal(torch.nan_to_num(value), torch.nan_to_num(second[name][key])), (name, key)


@pytest.mark.slow
def test_a_run_of_two_processes_resumes_to_the_same_bits(runs, two):
    assert [path.name for path in (two / "run").iterdir()] == ["run.pt"]  # by the first process
    for run in runs:
        for key in ("direction", "logits", "loss"):
            assert torch.equal(run["resumed"][key], run["constant"][key])


@pytest.mark.slow
def test_the_first_process_has_the_say_about_the_start(runs):
    one, *two = (run["seeds"] for run in runs)
    for ours in two:
        torch.testing.assert_close(ours["direction"], one["direction"], rtol=0, atol=TRAJECTORY)
    assert float((one["direction"] - runs[0]["whole"]["direction"]).abs().max()) > VISIBLE


@pytest.mark.slow
def test_they_stop_together_where_one_diverges(runs):
    assert [run["bad"]["diverged_at"] for run in runs] == [7, 7, 7]


@pytest.mark.slow
def test_the_small_calls(runs):
    _, first, second = (run["calls"] for run in runs)
    assert (first["main"], second["main"]) == (True, False)
    for calls, rank in ((first, 0.0), (second, 1.0)):
        assert calls["mean"].tolist() == [0.5, 1.0]
        assert calls["mine"].tolist() == [rank, 1.0]  # left as it was
        assert calls["from_main"] == {"rank": 0}


@pytest.mark.slow
def test_an_uneven_batch_is_refused(runs):
    assert runs[0]["uneven"] == (33, 1, 8, 8)
    for run in runs[1:]:
        assert run["uneven"] == "batches must have a size that is a multiple of the 2 processes, got 33"


def test_nothing_happens_in_a_single_process():
    net, batches = torch.nn.Linear(2, 3), [(torch.ones(3, 2), torch.ones(3))]
    assert wrap(net) is net and wrap(net, "cpu") is net and shard(batches) is batches
    tensor, value = torch.ones(2), object()
    assert mean_over_ranks(tensor) is tensor and from_main(value) is value and is_main()
    assert start().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert not torch.distributed.is_initialized()
    with pytest.raises(TypeError, match=r"tensor must be floating-point, got torch.int64"):
        mean_over_ranks(torch.ones(2, dtype=torch.int64))


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="LOCAL_RANK must be below the number of GPUs, 2, got 2"):
        start()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert start() == torch.device("cuda", 1)


def test_parts_make_the_whole():
    batches = [(torch.arange(12.0).reshape(6, 2) + t, torch.arange(6) + t) for t in range(4)]
    parts = [Part(batches, rank, 3) for rank in range(3)]
    for t, (x, y) in enumerate(batches):
        assert torch.equal(torch.cat([part[t][0] for part in parts]), x)
        assert torch.equal(torch.cat([part[t][1] for part in parts]), y)
    assert [len(parts[1]), len(parts[1][1:3]), len(list(parts[1]))] == [4, 2, 4]
    assert torch.equal(parts[1][1:3][0][1], parts[1][1][1]) and torch.equal(parts[1][-1][1], parts[1][3][1])
    with pytest.raises(ValueError, match="a multiple of the 4 processes, got 6"):
        Part(batches, 0, 4)[0]
    with pytest.raises(IndexError):
        parts[0][4]


class Lazy(torch.utils.data.Dataset):
    """Counts what is asked for."""

    def __init__(self):
        self.asked = []

    def __len__(self):
        return 10**9

    def __getitem__(self, t):
        self.asked.append(t)
        return torch.ones(2), torch.ones(2)


def test_batches_are_made_when_asked_for():
    lazy = Lazy()
    part = Part(lazy, 0, 2)
    assert len(part) == 10**9 and not lazy.asked
    part[5]
    assert lazy.asked == [5]
