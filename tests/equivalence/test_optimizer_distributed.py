"""ExpLR under DDP and FSDP2: two processes, half a batch each, against one process with weight decay.

On processors, over gloo. Torch has no SyncBatchNorm there: the BatchNorm net keeps the statistics of each
half-batch, and its reference in a single process sees the halves one by one.
"""

import functools

import pytest
import torch
import two_processes as two
from helpers import TRAJECTORY, VISIBLE
from launch import of_two_processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the two processes left their results and checkpoints."""
    return of_two_processes(tmp_path_factory, "two_processes")


@pytest.fixture(scope="module")
def results(folder):
    """The results of each process."""
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@functools.cache
def reference(name, convert=False, stop=two.STEPS):
    """The run of a single process: with weight decay, or ExpLR's."""
    return two.run(name, convert=convert, stop=stop)


def gap(a, b):
    """The largest difference of direction, of the other weights, and of the logits."""
    return max(float((a[key] - b[key]).abs().max()) for key in ("direction", "rest", "logits"))


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", two.CASES)
def test_two_processes_give_the_run_of_one(results, engine, name):
    if engine == "fsdp" and name == "fused" and isinstance(results[0]["bare fused"], str):
        assert results[0][engine, name] == results[0]["bare fused"]  # torch has no sharded fused SGD
        return
    plain, single = reference(name), reference(name, convert=True)
    for rank in (0, 1):
        ours = results[rank][engine, name]
        if name != "batch" or rank == 0:  # running statistics belong to each process
            assert gap(ours, plain) < TRAJECTORY and gap(ours, single) < TRAJECTORY
        assert abs(float(ours["length"] / single["length"]) - 1) < TRAJECTORY
        assert ours["log_scale"] == single["log_scale"] and ours["doublings"] == single["doublings"]
        assert ours["eps"] == single["eps"] != 1e-2
        assert ours["norms"] == pytest.approx(plain["norms"], rel=1e-9) if name == "clip" else True
    assert results[0][engine, name]["state"] == results[1][engine, name]["state"]
    assert float(plain["length"] / single["length"]) < 0.99  # another gauge, not the same run


def test_the_cases_are_what_they_say():
    assert reference("rebases", convert=True)["doublings"] >= 3
    assert reference("resets", convert=True)["doublings"] >= 3
    assert reference("layer", convert=True)["doublings"] == 0
    assert min(reference("clip")["norms"]) < 0.5 < max(reference("clip")["norms"])
    assert gap(reference("clip"), reference("layer")) > VISIBLE
    assert gap(reference("overflow"), reference("layer")) > VISIBLE


@pytest.mark.parametrize(
    "control",
    [("alone", "layer"), ("ddp", "wrong growth"), ("ddp", "eps forgotten"), ("fsdp", "eps forgotten")],
)
def test_controls_differ(results, control):
    """Gradients that are not averaged, a growth without the momentum correction, an eps that stays."""
    plain = reference("layer", stop=two.CONTROL)
    assert gap(plain, reference("layer", convert=True, stop=two.CONTROL)) < TRAJECTORY
    for rank in (0, 1):
        assert gap(results[rank][control], plain) > VISIBLE


@pytest.mark.parametrize("engine", ["ddp", *two.LAYOUTS])
def test_detaching_gives_back_the_run_with_weight_decay(results, engine):
    """Sharded as a whole, or kept whole after the forward pass, or in part; after a look at the logits."""
    plain = reference("rebases")
    for rank in (0, 1):
        ours = results[rank][engine, "detached"]
        assert gap(ours, plain) < TRAJECTORY
        assert abs(float(ours["length"] / plain["length"]) - 1) < TRAJECTORY
        middle, prefix = ours["middle"], "module." if engine == "ddp" else ""
        assert middle["doublings"] >= 1 and middle["eps"] > 1e-2
        assert gap(middle, reference("rebases", stop=two.STEPS // 2)) < TRAJECTORY
        assert middle["state"]["names"] == {0: [f"{prefix}0.weight", f"{prefix}3.weight"]}
        assert middle["state"]["norms"]["degrees"] == {f"{prefix}1": [1], f"{prefix}4": [1]}


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_a_run_of_two_processes_goes_on_in_one(folder, engine):
    assert gap(two.go_on_alone(engine, folder), reference("rebases")) < TRAJECTORY


def test_tags_are_tested_before_the_weights_are_sharded(results):
    assert results[0]["ddp", "tested"] == "quiet"
    assert results[0]["fsdp", "tested"] == (
        "ValueError: model must have whole parameters, got sharded ones: test it before it is sharded"
    )


def test_torch_has_no_sync_batch_norm_on_processors(results):
    """Should it come, `wrap` can use it there too."""
    assert "expected input tensor to be on GPU" in str(results[0]["sync"])
