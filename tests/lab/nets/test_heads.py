"""The head: its scale, and whether it is trained."""

import math

import pytest

from normcore.lab.nets.layers import make_head


def test_random_rows_have_length_one_on_average():
    weight = make_head(400, 50, "frozen").weight
    assert float(weight.detach().std()) * math.sqrt(400) == pytest.approx(1.0, abs=0.03)  # 20,000 draws


def test_only_the_trained_head_is_trained():
    trained = [kind for kind in ("frozen", "trained") if make_head(16, 10, kind).weight.requires_grad]
    assert trained == ["trained"] and make_head(16, 10, "frozen").bias is None
