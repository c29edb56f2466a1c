"""Models trained in a stack against torch.optim.SGD, one by one."""

import copy
import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from normcore.lab import cnn, load_dataset, mlp, preresnet
from normcore.lab.ensemble import architecture, train_ensemble
from normcore.lab.nets import two_layer

DATA = load_dataset("digits", dtype=torch.float64)
STEPS = 12


def sgd_one_by_one(models, batches, loss_fn, lr, weight_decay, momentum):
    """The reference: stock SGD on a copy of each, and the losses (T, K)."""
    copies, losses = copy.deepcopy(list(models)), np.full(lr.T.shape, np.nan)
    diverged_at = [None] * len(copies)
    for k, model in enumerate(copies):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for t in range(lr.shape[1]):
            x, y = batches[k][t]
            values = {"lr": lr[k, t], "weight_decay": weight_decay[k, t], "momentum": momentum[k, t]}
            optimizer.param_groups[0].update({name: float(value) for name, value in values.items()})
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            losses[t, k] = loss.item()
            if not np.isfinite(losses[t, k]):
                diverged_at[k] = t
                break
            loss.backward()
            optimizer.step()
    return copies, losses, diverged_at


def one_hot_loss(output, y):
    return mse_loss(output, torch.eye(10, dtype=output.dtype)[y])


MODELS = {
    "mlp": functools.partial(mlp, (64, 12, 10), dtype=torch.float64),
    "mlp batch norm": functools.partial(mlp, (64, 12, 10), norm="batch", affine=True, dtype=torch.float64),
    "cnn": functools.partial(cnn, (4, 6), affine=True, head="trained", dtype=torch.float64),
    "cnn group": functools.partial(cnn, (4, 6), norm="group", dtype=torch.float64),
    "resnet": functools.partial(preresnet, 8, width=3, dtype=torch.float64),
    "two-layer": functools.partial(two_layer, 64, 32, 10, dtype=torch.float64),
}


def rates(kind, count):
    """Learning rate, weight decay, momentum, each (K, T)."""
    rng = np.random.default_rng(0)
    lr = np.repeat(np.geomspace(0.01, 0.2, count)[:, None], STEPS, axis=1)
    none = np.zeros_like(lr)
    return {
        "plain": (lr, none, none),
        "decay": (lr, np.where(np.arange(count) % 2, 0.05, 0.0)[:, None] + none, none),
        "momentum": (lr, 0.01 + none, np.array([0.9, 0.5, 0.0, 0.9])[:, None] + none),
        "schedules": (
            lr * rng.uniform(0, 1, lr.shape),
            rng.uniform(0, 0.1, lr.shape),
            rng.choice([0.0, 0.5, 0.9], lr.shape),
        ),
    }[kind]


@pytest.mark.parametrize("name", MODELS)
def test_equals_stock_sgd(name):
    models = [MODELS[name](seed=seed) for seed in (0, 1, 0, 2)]
    batches = [DATA.batches(STEPS, 16, seed) for seed in (0, 1, 0, 2)]
    values = rates("schedules", 4)
    loss_fn = one_hot_loss if name == "two-layer" else cross_entropy
    copies, losses, _ = sgd_one_by_one(models, batches, loss_fn, *values)
    outcome = train_ensemble(
        models, batches, loss_fn=loss_fn, lr=values[0], weight_decay=values[1], momentum=values[2]
    )
    np.testing.assert_allclose(outcome.loss, losses, rtol=1e-9)
    assert outcome.diverged_at == [None] * 4
    for model, reference in zip(models, copies, strict=True):
        for (key, value), other in zip(
            model.state_dict().items(), reference.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-12, msg=key)  # running statistics too


@pytest.mark.parametrize("kind", ["plain", "decay", "momentum", "schedules"])
def test_each_rate_is_that_of_stock_sgd(kind):
    values, batches = rates(kind, 4), [DATA.batches(STEPS, 16)] * 4
    models = [MODELS["mlp"](seed=0) for _ in range(4)]
    _, losses, _ = sgd_one_by_one(models, batches, cross_entropy, *values)
    outcome = train_ensemble(
        models, batches, loss_fn=cross_entropy, lr=values[0], weight_decay=values[1], momentum=values[2]
    )
    np.testing.assert_allclose(outcome.loss, losses, rtol=1e-10)
    assert len(np.unique(outcome.loss[-1])) == 4  # control: the rates matter


def test_a_model_that_diverges_is_frozen_at_the_same_step():
    x, y = DATA.x_train[:40], DATA.y_train[:40]
    models = [two_layer(64, 32, 10, activation="identity", seed=seed) for seed in range(4)]
    batches = [[(x.float(), y)] * 60] * 4
    lr = np.repeat(np.array([0.01, 30.0, 0.02, 3000.0])[:, None], 60, axis=1)
    decay, momentum = np.full_like(lr, 1e-3), np.full_like(lr, 0.5)
    copies, losses, diverged_at = sgd_one_by_one(models, batches, one_hot_loss, lr, decay, momentum)
    outcome = train_ensemble(
        models, batches, loss_fn=one_hot_loss, lr=lr, weight_decay=decay, momentum=momentum
    )
    assert outcome.diverged_at == diverged_at
    assert diverged_at[0] is diverged_at[2] is None and 0 < diverged_at[3] < diverged_at[1] < 60
    np.testing.assert_allclose(outcome.loss[:, [0, 2]], losses[:, [0, 2]], rtol=1e-4)
    for k in (1, 3):
        assert np.isnan(outcome.loss[diverged_at[k] + 1 :, k]).all()
        assert np.isfinite(outcome.loss[: diverged_at[k], k]).all()
        for value, reference in zip(models[k].parameters(), copies[k].parameters(), strict=True):
            torch.testing.assert_close(value, reference, rtol=1e-3, atol=0.0, equal_nan=True)


def test_all_may_diverge():
    models = [MODELS["two-layer"](seed=seed) for seed in range(2)]
    batches = [[(DATA.x_train[:5] * 1e200, DATA.y_train[:5])] * 3] * 2
    none = np.zeros((2, 3))
    outcome = train_ensemble(models, batches, loss_fn=one_hot_loss, lr=none, weight_decay=none, momentum=none)
    assert outcome.diverged_at == [0, 0]


def test_a_shared_batch_is_made_once():
    made = []

    class Counted:
        def __getitem__(self, t):
            made.append(t)
            return DATA.x_train[:8], DATA.y_train[:8]

    shared, own, none = Counted(), Counted(), np.zeros((3, 4))
    models = [MODELS["mlp"](seed=seed) for seed in range(3)]
    train_ensemble(
        models, [shared, own, shared], loss_fn=cross_entropy, lr=none, weight_decay=none, momentum=none
    )
    assert made == [0, 0, 1, 1, 2, 2, 3, 3]


class Tied(nn.Module):
    """A weight with two names, and one that is not trained."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.one, self.two = nn.Linear(3, 3).double(), nn.Linear(3, 3, bias=False).double()
        self.two.weight = self.one.weight
        self.one.bias.requires_grad_(False)

    def forward(self, x):
        return self.two(self.one(x).tanh())


def test_tied_and_frozen_weights_are_what_they_are():
    models, values = [Tied(seed) for seed in range(4)], rates("schedules", 4)
    batches = [
        [(DATA.x_train[k : k + 1, 0, :3, :3].flatten(0, 1), torch.ones(3, 3).double()) for k in range(STEPS)]
    ] * 4
    copies, losses, _ = sgd_one_by_one(models, batches, mse_loss, *values)
    before = [model.one.weight for model in models]
    outcome = train_ensemble(
        models, batches, loss_fn=mse_loss, lr=values[0], weight_decay=values[1], momentum=values[2]
    )
    np.testing.assert_allclose(outcome.loss, losses, rtol=1e-10)
    for model, reference, weight in zip(models, copies, before, strict=True):
        assert model.one.weight is model.two.weight is weight
        torch.testing.assert_close(model.one.weight, reference.one.weight, rtol=1e-10, atol=0.0)


class Scaled(nn.Linear):
    def __init__(self, scale):
        super().__init__(2, 2)
        self.scale = scale

    def forward(self, x):
        return self.scale * super().forward(x)


def test_architecture_is_all_that_is_not_weights():
    def net(activation=nn.ReLU, width=3, norm=nn.LayerNorm):
        return nn.Sequential(nn.Linear(2, width), norm(width), activation())

    frozen = net()
    frozen[0].weight.requires_grad_(False)
    hooked = net()
    hooked.register_forward_hook(lambda module, x, y: 2 * y)
    nets = [
        net(),
        net(nn.Tanh),
        net(width=4),
        net(norm=nn.BatchNorm1d),
        net().eval(),
        net().double(),
        frozen,
        hooked,
    ]
    nets += [Scaled(1.0), Scaled(2.0), nn.Sequential(nn.LeakyReLU(0.1)), nn.Sequential(nn.LeakyReLU(0.2))]
    assert len({architecture(model) for model in nets}) == len(nets)
    assert architecture(net()) == architecture(nets[0]) and architecture(Scaled(1.0)) == architecture(nets[8])
    assert architecture(mlp((4, 3, 2), seed=0)) == architecture(mlp((4, 3, 2), seed=1))


def test_random_and_recurrent_layers_are_refused():
    none, batches = np.zeros((1, 1)), [[(torch.ones(2, 3), torch.ones(2, 3))]]
    for layer in (nn.RReLU(), nn.LSTM(3, 3), nn.AlphaDropout(), nn.Dropout(0.5)):
        model = nn.Sequential(nn.Linear(3, 3), layer)
        with pytest.raises(ValueError, match="layer '1' must not be random or recurrent in a stack, got "):
            train_ensemble([model], batches, loss_fn=mse_loss, lr=none, weight_decay=none, momentum=none)
    model.eval()  # control: then it is not random
    train_ensemble([model], batches, loss_fn=mse_loss, lr=none, weight_decay=none, momentum=none)
