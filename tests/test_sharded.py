"""Under FSDP2, two processes read the norms, angles and probes of one; parts are uneven, and some are empty."""

import functools
import math

import pytest
import sharded_runs as runs
import torch
from launch import of_two_processes
from torch import nn

from normcore.sharded import Totals, is_sharded, part_of_gradient, parts, reshard, whole

CASES = [(name, "fsdp") for name in runs.MAKERS] + [("momentum", engine) for engine in runs.LAYOUTS[1:]]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of each process."""
    folder = of_two_processes(tmp_path_factory, "sharded_runs")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


reference = functools.cache(runs.run)


def test_the_second_process_holds_less_and_at_times_nothing(results):
    whole_sizes = [p.numel() for p in runs.net().parameters()]
    sizes = [result["sizes"] for result in results]
    assert [sum(pair) for pair in zip(*sizes, strict=True)] == whole_sizes
    assert all(b < a for a, b in zip(*sizes, strict=True)) and sizes[1].count(0) == 2


@pytest.mark.parametrize("case", CASES)
def test_the_monitor_logs_whole_tensors(results, case):
    single = reference(case[0])
    for rank in (0, 1):
        ours = results[rank][case]
        assert len(ours["logs"]) == len(single["logs"]) == runs.STEPS // runs.EVERY
        for one, other in zip(single["logs"], ours["logs"], strict=True):
            assert {key.split("/")[0] for key in other} >= {"group0", "group1", "0.weight", "6.gate.weight"}
            assert other == pytest.approx(one, rel=1e-9, abs=1e-12, nan_ok=True)
        assert ours["effective_lr"] == pytest.approx(single["effective_lr"], rel=1e-9)
    assert sum(math.isfinite(value) for value in one.values()) > 0.8 * len(one)


@pytest.mark.parametrize("case", CASES)
def test_all_processes_have_the_same_numbers(results, case):
    one, other = (result[case] for result in results)
    for key in ("logs", "state", "effective_lr"):
        assert repr(one[key]) == repr(other[key])  # nan and all


@pytest.mark.parametrize("case", CASES)
def test_probes_read_whole_weights(results, case):
    single = reference(case[0])["probes"]
    assert float(single["angle"][1:].min()) > 1e-3  # it does move
    for rank in (0, 1):
        for name, values in results[rank][case]["probes"].items():
            torch.testing.assert_close(values, single[name], rtol=1e-9, atol=1e-9, equal_nan=True, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_parts_alone_would_not_do(results, case):
    """The norm of what each process holds; and, of what all hold, the sum."""
    norms = reference(case[0])["probes"]["norm"]
    for rank in (0, 1):
        local = torch.tensor(results[rank][case]["local"], dtype=torch.float64)
        if case[1] == "hybrid":
            assert float((local / norms - 1).abs().max()) < 1e-9  # all of it: the parts must not be added up
        else:
            assert float((local / norms - 1).abs().min()) > 0.01


def test_weights_are_read_in_their_own_precision(results):
    for rank in (0, 1):
        half = results[rank]["half"]
        assert half["logits"].dtype == torch.bfloat16
        assert torch.equal(half["vector"], half["true"])
        assert not torch.equal(half["kept"], half["true"])  # what FSDP registers after the forward pass


def test_gradients_are_read_as_the_weights_are_laid_out(results):
    """A replicated weight whose gradient is a sum still to be taken."""
    for rank in (0, 1):
        assert results[rank]["gradient"].tolist() == [3.0, 3.0]  # 1 of the first process and 2 of the second


def test_only_modules_of_fsdp_are_resharded(results):
    assert all(result["others"] == "quiet" for result in results)


def test_swa_refuses_sharded_models(results):
    for rank in (0, 1):
        assert results[rank]["swa"] == (
            "model must have whole weights to be averaged by SWA, got sharded ones: "
            "torch cannot copy a model under fully_shard"
        )


def test_ordinary_tensors_pass_through():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    assert not is_sharded(weight) and part_of_gradient(weight) is None
    weight.sum().backward()
    assert part_of_gradient(weight) is weight.grad and parts([weight])[0] is weight
    assert whole(weight).data_ptr() == weight.data_ptr() and not whole(weight).requires_grad
    values = torch.ones(2, 1)
    assert Totals([weight])(values) is values
    layer = nn.Linear(2, 2)
    reshard(layer)
    assert isinstance(layer.weight, nn.Parameter)
