"""Tagged parameter groups."""

import copy

import pytest
import torch
from invariance_nets import Block, classifier_batch, conv_net
from torch import nn
from torch.nn.functional import cross_entropy

import normcore as nc


def test_every_parameter_is_in_exactly_one_group():
    for model, batch in (
        (conv_net(nn.BatchNorm2d), classifier_batch(16, 1, 8, 8)),
        (Block(), classifier_batch(16, 3, 5)),
    ):
        groups = nc.param_groups(
            model, nc.scale_invariance(model, cross_entropy, batch), lr=0.1, weight_decay=1e-2
        )
        placed = [id(p) for group in groups for p in group["params"]]
        assert sorted(placed) == sorted(id(p) for p in model.parameters())
        assert all(group["lr"] == 0.1 for group in groups)
        assert [group["scale_invariant"] for group in groups][-1] is False


def test_joint_groups_train_with_exp_lr():
    model, batch = Block(), classifier_batch(16, 3, 5)
    optimizer = torch.optim.SGD(
        nc.param_groups(model, nc.scale_invariance(model, cross_entropy, batch)), lr=0.1, weight_decay=1e-2
    )
    exp_lr = nc.ExpLR(optimizer, model)
    cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()
    assert exp_lr.log_scale(0) < 0


def test_a_bias_in_front_of_batch_norm_goes_with_its_weight():
    """torchvision's VGG has such biases: their sum with the weight's output must stay homogeneous."""
    models = [conv_net(nn.BatchNorm2d, bias=True)]
    models.append(copy.deepcopy(models[0]))
    batch = classifier_batch(16, 1, 8, 8)
    report = nc.scale_invariance(models[0], cross_entropy, batch)
    assert report.inert == ["0.bias", "3.bias"]
    optimizers = [
        torch.optim.SGD(nc.param_groups(model, report), lr=0.1, momentum=0.9, weight_decay=1e-2)
        for model in models
    ]
    nc.ExpLR(optimizers[1], models[1])
    for model, optimizer in zip(models, optimizers, strict=True):
        for _ in range(30):
            optimizer.zero_grad()
            cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
        model.eval()
    assert float((models[0](batch[0]) - models[1](batch[0])).detach().abs().max()) < 1e-9


def test_a_report_of_another_model_is_refused():
    report = nc.scale_invariance(Block(), cross_entropy, classifier_batch(16, 3, 5))
    with pytest.raises(ValueError, match="report must be of this model, got one that differs in"):
        nc.param_groups(conv_net(nn.BatchNorm2d), report)
