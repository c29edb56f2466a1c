"""Classes in balance."""

from collections import Counter

import pytest
import torch

from normcore.lab.data.sources import balanced, first_share, rank_in_class


@pytest.fixture(params=[0, 1, 2])
def labels(request):
    generator = torch.Generator().manual_seed(request.param)
    return torch.randint(7, (100,), generator=generator) * torch.randint(2, (100,), generator=generator)


def test_rank_counts_those_before(labels):
    seen, want = Counter(), []
    for label in labels.tolist():
        want.append(seen[label])
        seen[label] += 1
    assert rank_in_class(labels).tolist() == want


def test_a_balanced_draw_fills_the_classes_in_rounds(labels):
    have = Counter(labels.tolist())
    for size in (1, 7, 20, 60, 100):
        chosen = balanced(labels, size, seed=3)
        assert len(set(chosen.tolist())) == size
        kept = Counter(labels[chosen].tolist())
        most = max(kept.values())
        assert all(kept[label] >= min(have[label], most - 1) for label in have)
    plain = Counter(labels[torch.randperm(100, generator=torch.Generator().manual_seed(3))[:20]].tolist())
    assert max(plain.values()) - min(plain[label] for label in have) > 1  # a plain draw is not balanced


def test_a_balanced_draw_is_random_and_nested(labels):
    long, again, other = balanced(labels, 50, 0), balanced(labels, 50, 0), balanced(labels, 50, 1)
    assert torch.equal(long, again) and not torch.equal(long, other)
    assert torch.equal(balanced(labels, 20, 0), long[:20])


def test_first_share_takes_the_first_of_each_class(labels):
    marked = first_share(labels, 5)
    for label in labels.unique():
        mine = marked[labels == label]
        count = len(mine) // 5
        assert mine.tolist() == [True] * count + [False] * (len(mine) - count)
