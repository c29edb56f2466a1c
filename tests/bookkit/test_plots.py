"""The figures' house style."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from normcore.bookkit import plots


@pytest.fixture(autouse=True)
def headless():
    mpl.use("Agg")
    yield
    plt.close("all")


def test_curve_draws_a_labelled_line_and_returns_nothing():
    _, ax = plt.subplots()
    assert plots.curve(ax, [1, 2], [3, 4], "theory", "law") is None
    assert ax.lines[0].get_color() == "black" and ax.texts[0].get_text() == "law"
    with pytest.raises(KeyError):
        plots.curve(ax, [1], [1], "unknown")


def test_panels_and_decades():
    plots.use_style()
    with plots.panels(2) as (left, right):
        plots.curve(left, [1, 2], [1, 1e6])
        plots.decades(left)
        plots.axes_labels(right, "t", "y", "title")
    assert left.get_yscale() == "log" and right.get_xlabel() == "t"
    assert mpl.rcParams["axes.spines.top"] is False
