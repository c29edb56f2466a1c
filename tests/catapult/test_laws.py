"""The closed forms against runs of the model."""

import numpy as np
import pytest

from normcore import catapult


def test_the_lower_edge_solves_its_equation():
    f, curvature, n, x = 0.9, 2.3, 30, 1.7
    curvature *= x**2
    lower, upper = catapult.edges(f, curvature, n, input=x)
    assert abs(lower * curvature - 2 - lower**2 * f**2 * x**2 / n) < 1e-12 and upper == 4 / curvature
    f, curvature = 2.0, 2.2  # width 4: the lower edge would pass the upper one
    assert np.isnan(catapult.edges(f, curvature, 4)[0])
    run = catapult.simulate(f, curvature, np.linspace(0.05, 3.99, 50) / curvature, 4, 1)
    assert (run.loss[1] <= run.loss[0]).all()


def test_edges_at_small_curvature_and_discriminant():
    f, curvature, n = 0.1, 0.5, 10  # curvature^2 - 8 f^2/n = 0.242
    lower, upper = catapult.edges(f, curvature, n)
    assert upper == 8.0 and lower == pytest.approx(4 / (0.5 + 0.242**0.5), rel=1e-14)
    rates = lower * np.array([1 - 1e-6, 1 + 1e-6])
    run = catapult.simulate(f, curvature, rates, n, 1)
    assert (run.loss[1] > run.loss[0]).tolist() == [False, True]


@pytest.mark.parametrize("a", [2.5, 3.0, 3.5])
def test_duration_slope_and_peak_exponent(a):
    widths = 2.0 ** np.arange(10, 60, 2)
    steps = int(catapult.duration(a, widths[-1])) + 30
    offsets = np.exp(np.linspace(0, 2 * np.log(a - 1), 40))  # averages the phase of the last step
    run = catapult.simulate(0.5 * np.sqrt(offsets)[:, None], 2.0, a / 2, widths, steps)
    when = np.argmax(np.abs(run.output), axis=0).mean(axis=0)
    slope = np.polyfit(np.log(widths), when, 1)[0]
    assert abs(slope / (1 / (2 * np.log(a - 1))) - 1) < 0.01
    peaks = np.log(np.abs(run.output).max(axis=0) ** 2).mean(axis=0)
    assert abs(np.polyfit(np.log(widths), peaks, 1)[0] - 1) < 0.01


def test_near_critical_expansion_is_of_third_order():
    delta = np.array([0.02, 0.04, 0.08])
    run = catapult.simulate(1.0, 2.0, (2 + delta) / 2, 2**60, 6000)
    z = np.max(((2 + delta) / 2) ** 2 * run.output**2 / 2**60, axis=0)
    error = np.abs((2 + delta) / 2 * run.curvature[-1] - catapult.final_curvature(2 + delta))
    assert (error < 3 * delta**3).all()
    assert (np.abs((2 + delta) / 2 * run.curvature[-1] - (2 - delta)) > 0.5 * delta**2).all()  # one term less
    assert (np.abs(z - catapult.peak(2 + delta)) < 3 * delta**4).all()
    order = np.polyfit(np.log(delta), np.log(error), 1)[0]
    assert 2.7 < order < 3.4


@pytest.mark.parametrize(
    "law", [lambda a: catapult.duration(a, 100), catapult.final_curvature, catapult.peak]
)
def test_outside_the_catapult_phase(law):
    with pytest.raises(ValueError, match="scaled_curvature must be finite and > 2 and < 4, got 1.9"):
        law(1.9)
    with pytest.raises(ValueError, match="scaled_curvature must be finite and > 2 and < 4, got 4.0"):
        law([2.5, 4.0])
