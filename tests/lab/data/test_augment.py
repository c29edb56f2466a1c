"""Crops and flips of a batch, against a loop over its images."""

import pytest
import torch
from torchvision.transforms import functional

from normcore.lab.data.batches import AUGMENT, EPOCH, augment, generator_of, windows


def images(count, shape=(3, 7, 5)):
    """Random bytes, none of them black."""
    generator = torch.Generator().manual_seed(count)
    return torch.randint(1, 256, (count, *shape), dtype=torch.uint8, generator=generator)


def one_by_one(x, top, left, mirrored, padding):
    """As torchvision does it: pad, cut and mirror each image."""
    done = []
    for image, i, j, mirror in zip(x, top.tolist(), left.tolist(), mirrored.tolist(), strict=True):
        cut = functional.crop(functional.pad(image, [padding]), i, j, *image.shape[1:])
        done.append(functional.hflip(cut) if mirror else cut)
    return torch.stack(done)


@pytest.mark.parametrize("shape", [(3, 7, 5), (1, 8, 8)])
@pytest.mark.parametrize("padding", [0, 1, 4, 9])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_windows_are_what_a_loop_cuts(shape, padding, dtype):
    x, generator = images(64, shape).to(dtype), torch.Generator().manual_seed(padding)
    top, left = torch.randint(2 * padding + 1, (2, 64), generator=generator)
    mirrored = torch.randint(2, (64,), generator=generator).bool()
    got = windows(x, top, left, mirrored, padding)
    assert torch.equal(got, one_by_one(x, top, left, mirrored, padding))
    assert got.dtype == dtype and got.is_contiguous()
    assert not torch.equal(got, one_by_one(x, top, left, ~mirrored, padding))


def places(x, crop, flip, seed, t):
    """The (top, left, mirrored) that explains each augmented image; random bytes leave one."""
    found, got, ones = [], augment(x, crop=crop, flip=flip, seed=seed, t=t), torch.ones(len(x))
    explained = torch.zeros(len(x))
    for top in range(2 * crop + 1):
        for left in range(2 * crop + 1):
            for mirror in (False, True):
                here = [(ones * value).long() for value in (top, left)]
                match = (one_by_one(x, *here, (ones * mirror).bool(), crop) == got).flatten(1).all(1)
                found += [(top, left, mirror)] * int(match.sum())
                explained += match
    assert explained.tolist() == [1.0] * len(x)
    return found


def test_every_image_has_a_uniform_place_and_side_of_its_own():
    found = places(images(1800), crop=1, flip=True, seed=0, t=3)
    assert len(set(found)) == 18
    for place in set(found):  # 100 expected, deviation 9.7
        assert 55 < found.count(place) < 145


def test_crop_and_flip_can_be_had_alone():
    assert {mirror for *_, mirror in places(images(100), crop=2, flip=False, seed=0, t=0)} == {False}
    assert {place[:2] for place in places(images(100), crop=0, flip=True, seed=0, t=0)} == {(0, 0)}
    assert torch.equal(augment(images(9), crop=0, flip=False, seed=0, t=0), images(9))


def test_what_moves_in_is_black():
    got = augment(images(300), crop=2, flip=True, seed=1, t=0)
    assert 0 in got and (got != 0).any(dim=(1, 2, 3)).all()


def test_draws_depend_on_seed_and_step_only():
    x, options = images(50), dict(crop=3, flip=True)
    base = augment(x, **options, seed=5, t=7)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(augment(x, **options, seed=5, t=7), base)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(augment(x, **options, seed=5, t=8), base)
    assert not torch.equal(augment(x, **options, seed=6, t=7), base)


def test_one_seed_gives_unrelated_generators():
    keys = [(s, p, t) for s in (-1, 0, 1, 2**40) for p in (AUGMENT, EPOCH) for t in (0, 1, 2**33)]
    firsts = {torch.randint(2**31, (2,), generator=generator_of(*key)).tolist()[0] for key in keys}
    assert len(firsts) == len(keys)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_images():
    x, options = images(200), dict(crop=4, flip=True, seed=0, t=0)
    assert torch.equal(augment(x.cuda(), **options).cpu(), augment(x, **options))
