"""Figures in one style: one colour one meaning, theory dashed and black, labels at the curves."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib import cbook
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from normcore.checks import checked_choice, checked_count, require_type

DECAY, EXPONENTIAL, CONTROL, OTHER = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
"""Okabe and Ito's colours, told apart in every common form of colour blindness.

Run with weight decay, run at the exponential rate, control, a further curve.
"""

# A pair that is one run lies on itself: the first is wide, the second thin with sparse marks. Dashes are theory's.
KINDS: dict[str, dict[str, Any]] = {
    "decay": {"color": DECAY, "linewidth": 3.0, "alpha": 0.7},
    "exponential": {"color": EXPONENTIAL, "linewidth": 1.5, "marker": "o", "markersize": 4, "markevery": 0.1},
    "control": {"color": CONTROL},
    "other": {"color": OTHER},
    "theory": {"color": "black", "linestyle": "--", "linewidth": 1.3, "zorder": 5},
    "guide": {"color": "#8a8a8a", "linewidth": 1.0},
}
BESIDE: dict[str, Any] = {"va": "center", "textcoords": "offset points", "annotation_clip": False}
"""How words stand beside a point."""


def use_style() -> None:
    """Switch matplotlib to the house style; images carry no version, so that they are the same bytes each time."""
    plt.style.use(Path(__file__).with_name("normcore.mplstyle"))
    mpl.rcParams["savefig.bbox"] = "standard"


@contextmanager
def panels(
    count: int = 1, *, rows: int = 1, height: float = 3.4, width: float = 7.0, **options: Any
) -> Iterator[Any]:
    """The Axes of a figure, or an array of `count` side by side, by row if there are several; shows it at the end."""
    _, axes = plt.subplots(rows, count, figsize=(width, height), **options)
    yield axes
    plt.show()


def curve(
    ax: Axes,
    x: Any,
    y: Any,
    kind: str = "decay",
    label: str = "",
    *,
    at: int = -1,
    offset: tuple[float, float] = (4, 0),
    **options: Any,
) -> None:
    """Draw a curve of a kind (a key of KINDS), with its label beside point `at`."""
    checked_choice("kind", kind, sorted(KINDS))
    require_type("ax", ax, Axes, "matplotlib's Axes")
    own = cbook.normalize_kwargs(options, Line2D)
    all_marks = {"markevery": None} if "marker" in own else {}
    (line,) = ax.plot(x, y, **KINDS[kind] | all_marks | own)
    if label:
        ax.annotate(label, (x[at], y[at]), xytext=offset, color=line.get_color(), fontsize=10, **BESIDE)


def band(ax: Axes, x: Any, low: Any, high: Any, kind: str = "decay") -> None:
    """Shade between two curves in the colour of a kind."""
    checked_choice("kind", kind, sorted(KINDS))
    require_type("ax", ax, Axes, "matplotlib's Axes")
    ax.fill_between(x, low, high, color=KINDS[kind]["color"], alpha=0.2, linewidth=0)


def axes_labels(ax: Axes, x: str, y: str, title: str = "") -> None:
    """Label both axes, and put what the panel shows above it."""
    require_type("ax", ax, Axes, "matplotlib's Axes")
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    if title:
        ax.set_title(title, loc="left", color="#333333")


def decades(ax: Axes, axis: str = "y", most: int = 6) -> None:
    """Make an axis logarithmic, with at most so many decades labelled."""
    require_type("ax", ax, Axes, "matplotlib's Axes")
    checked_choice("axis", axis, ("x", "y"))
    checked_count("most", most)
    getattr(ax, f"set_{axis}scale")("log")
    getattr(ax, f"{axis}axis").set_major_locator(LogLocator(base=10, numticks=most))
    getattr(ax, f"{axis}axis").set_minor_locator(NullLocator())
