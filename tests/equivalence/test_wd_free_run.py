"""The frozen value that holds the run without weight decay."""

import numpy as np
import pytest
import torch

import normcore as nc


def test_maps_take_tensors_and_a_missing_buffer():
    schedule = nc.equivalent_schedule(0.1, 1e-2, 0.9, steps=5)
    theta = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved, buffer = schedule.to_wd_free(theta, None, 4)
    back, original_buffer = schedule.from_wd_free(moved, buffer, 4)
    torch.testing.assert_close(back, theta, rtol=1e-15, atol=0)
    assert float(original_buffer.abs().max()) < 1e-16
    without, zero = schedule.from_wd_free(moved, None, 4), schedule.from_wd_free(moved, torch.zeros(3, 2), 4)
    assert all(torch.equal(a, b) for a, b in zip(without, zero, strict=True))


def test_lr_and_shift_are_the_exponentials():
    schedule = nc.equivalent_schedule(0.1, 1e-2, 0.9, steps=5)
    np.testing.assert_allclose(np.log(schedule.lr), schedule.log_lr, rtol=1e-14)
    np.testing.assert_allclose(
        schedule.buffer_shift, schedule.buffer_ratio * np.exp(schedule.log_scale), rtol=1e-15
    )
    assert schedule.steps == 5


def test_overflow_is_an_error_and_not_infinity():
    schedule = nc.equivalent_schedule(0.1, 2e-2, 0.9, steps=50_000)
    with pytest.raises(OverflowError, match="use log_lr, or ExpLR"):
        _ = schedule.lr
