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
    with pytest.raises(ValueError, match="kind must be one of"):
        plots.curve(ax, [1], [1], "unknown")


def test_panels_and_decades():
    plots.use_style()
    with plots.panels(2) as (left, right):
        plots.curve(left, [1, 2], [1, 1e6])
        plots.decades(left)
        plots.axes_labels(right, "t", "y", "title")
    assert left.get_yscale() == "log" and right.get_xlabel() == "t"
    assert mpl.rcParams["axes.spines.top"] is False
    with plots.panels(2, rows=2) as axes:
        assert axes.shape == (2, 2)


def test_theory_alone_is_dashed_and_a_pair_that_is_one_run_shows_both():
    _, ax = plt.subplots()
    for kind in plots.KINDS:
        plots.curve(ax, [1, 2], [3, 4], kind)
    lines = dict(zip(plots.KINDS, ax.lines, strict=True))
    assert [kind for kind, line in lines.items() if line.get_linestyle() != "-"] == ["theory"]
    assert lines["decay"].get_linewidth() > 1.5 * lines["exponential"].get_linewidth()
    assert lines["exponential"].get_markevery() is not None


def test_marks_that_are_asked_for_are_all_shown_and_short_names_win():
    _, ax = plt.subplots()
    plots.curve(ax, [1, 2], [3, 4], "exponential", marker="s", lw=7)
    assert ax.lines[0].get_markevery() is None and ax.lines[0].get_linewidth() == 7
