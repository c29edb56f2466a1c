"""What ExpLR may be attached to."""

import pytest
import torch
from nets import batches, groups, net
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from normcore.equivalence.co_scaling import warn_if_not_invariant
from normcore.equivalence.gauge import check_supported
from normcore.equivalence.group_gauge import GroupGauge


def test_decoupled_adam_is_supported_and_coupled_is_not():
    weight = [torch.nn.Parameter(torch.ones(2))]
    check_supported(torch.optim.AdamW(weight))
    check_supported(SGD(weight, lr=0.1))
    with pytest.raises(TypeError, match="got Adam: its coupled L2 term enters the second moment; use AdamW"):
        check_supported(torch.optim.Adam(weight, weight_decay=0.1))


def test_warns_only_where_the_output_moves(recwarn):
    model = net()
    right = GroupGauge(SGD(groups(model), lr=0.1), 0)
    warn_if_not_invariant(model, cross_entropy, next(batches(1)), {0: right})
    assert not recwarn.list
    wrong = GroupGauge(SGD([model[6].weight], lr=0.1), 0)
    with pytest.warns(UserWarning, match="group 0 is tagged scale_invariant=True but is not"):
        warn_if_not_invariant(model, cross_entropy, next(batches(1)), {0: wrong})
