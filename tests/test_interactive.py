"""The interactive figures: their closed forms against normcore's (node), and the page itself (headless Chromium)."""

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import normcore as nc
from normcore.bookkit import plots
from normcore.bookkit.scoreboard import load_scoreboard

BOOK = Path(__file__).parent.parent / "book"
STATIC = BOOK / "_static" / "interactive"
PAGE = (BOOK / "interactive.md").read_text(encoding="utf-8")
SCRIPTS = ("closed_forms", "draw", "schedule", "plane", "equilibrium", "catapult")
FIGURES = re.findall(r'data-figure="(\w+)"', PAGE)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)


# ---- the closed forms, in node


def in_node(function, *columns):
    """A function of the closed forms, written in JavaScript, at each row of these columns."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    rows = [
        [float(x) for x in row] for row in zip(*map(np.ravel, np.broadcast_arrays(*columns)), strict=True)
    ]
    code = (
        f"const forms = require({json.dumps(str(STATIC / 'closed_forms.js'))});"
        "const text = (key, x) => (typeof x === 'number' && !Number.isFinite(x) ? String(x) : x);"
        f"const results = {json.dumps(rows)}.map((row) => ({function})(...row));"
        "console.log(JSON.stringify(results, text));"
    )
    done = subprocess.run(["node"], input=code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def floats(values):
    return np.array(values, dtype=float)  # "Infinity" and "NaN" among them


def settings(products, momenta, rates):
    """lr, weight decay and momentum on a grid; the products are fractions of the critical one."""
    fraction, momentum, lr = (x.ravel() for x in np.meshgrid(products, momenta, rates))
    return lr, fraction * (1 - np.sqrt(momentum)) ** 2 / lr, momentum


GRID = settings([0, 1e-6, 1e-3, 0.5, 0.99], [0, 0.5, 0.9, 0.999], [1e-3, 0.1, 3.0])


def test_the_root_and_the_growth_are_those_of_normcore():
    expected = np.array([nc.growth_factor(*row) for row in zip(*map(np.ndarray.tolist, GRID), strict=True)])
    np.testing.assert_allclose(floats(in_node("forms.growthFactor", *GRID)), expected, rtol=1e-12)
    forgotten = floats(in_node("(lr, decay) => forms.growthFactor(lr, decay, 0)", *GRID))
    assert np.abs(forgotten - expected).max() > 0.01
    growth = floats(in_node("(...row) => forms.logGrowth(...row, 391)", *GRID))
    # a root is good to one rounding, which its logarithm and the 782 powers carry on
    np.testing.assert_allclose(growth, -782 * np.log(expected), rtol=1e-12, atol=782 * 2**-52)


PHASES = {  # phases, weight decay, momentum, and the phase in which the floats end
    "paper": ([(0.1, 800), (0.01, 400), (0.001, 400)], 5e-4, 0.9, None),
    "hard": ([(0.2, 300), (0.05, 300), (0.2, 2000)], 0.01, 0.9, 2),
    "no momentum": ([(1.0, 500), (0.1, 1000)], 0.1, 0.0, 0),
    "no decay": ([(0.1, 50), (0.01, 50)], 0.0, 0.9, None),
    "long": ([(0.1, 200_000)], 5e-4, 0.9, 0),
}


@pytest.mark.parametrize("phases, decay, momentum, last", PHASES.values(), ids=PHASES)
def test_the_rates_are_those_of_texp_and_end_where_rounding_ends_them(phases, decay, momentum, last):
    expected = nc.texp(phases, decay, momentum).log_lr
    schedule = f"const s = forms.texp({json.dumps(phases)}, {decay}, {momentum});"
    steps = np.unique(np.linspace(0, len(expected) - 1, 200).astype(int))
    rates = floats(in_node(f"(t) => {{ {schedule} return forms.logRate(s, t); }}", steps))
    np.testing.assert_allclose(rates, expected[steps], rtol=1e-12, atol=1e-12)
    ends = in_node(
        f"() => {{ {schedule} return Object.values(forms.LIMITS).map((x) => forms.firstBeyond(s, x)); }}", [0]
    )[0]
    values = torch.from_numpy(np.exp(np.minimum(expected, 200.0)))
    for end, dtype in zip(floats(ends), (torch.float32, torch.bfloat16), strict=True):
        infinite = torch.isinf(values.to(dtype))
        assert end == (int(infinite.double().argmax()) if infinite.any() else np.inf)
        starts = np.cumsum([0, *(steps for _, steps in phases)])
        assert np.isinf(end) if last is None else starts[last] <= end < starts[last + 1]


def test_the_contours_join_settings_of_equal_growth():
    factor, momentum = (x.ravel() for x in np.meshgrid([1.01, 2, 1e9], np.linspace(0, 0.999, 60)))
    products = floats(
        in_node("(factor, momentum) => forms.productOfGrowth(factor, 391, momentum)", factor, momentum)
    )
    exists = np.sqrt(momentum) <= factor ** (-1 / 782)
    assert np.array_equal(np.isnan(products), ~exists) and 0 < exists.sum() < len(exists)
    apart = exists & (
        momentum < 0.99 * factor ** (-1 / 391)
    )  # at the critical line the root is of double order
    for product, growth, m in zip(products[apart], factor[apart], momentum[apart], strict=True):
        assert nc.growth_factor(1.0, product, m) ** -782 == pytest.approx(growth, rel=1e-11)


LEVELS = settings([1e-6, 1e-3, 0.5], [0, 0.5, 0.99], [1e-3, 0.1, 3.0])


def test_the_equilibrium_is_that_of_normcore():
    found = in_node("(...row) => forms.equilibrium(...row, 7)", *LEVELS)
    expected = nc.equilibrium(*LEVELS, grad_sq_norm=7.0)
    names = {
        "norm": "norm",
        "effectiveLr": "effective_lr",
        "angle": "angle",
        "relaxationSteps": "relaxation_steps",
    }
    for name, ours in names.items():
        np.testing.assert_allclose([row[name] for row in found], getattr(expected, ours), rtol=1e-12)


@pytest.mark.parametrize("ratio_lr, ratio_wd", [(0.1, 1.0), (1.0, 0.1), (0.1, 10.0), (100.0, 0.01)])
def test_the_way_between_two_levels_is_that_of_normcore(ratio_lr, ratio_wd):
    before = dict(lr=0.1, weight_decay=5e-4, momentum=0.9)
    t = np.array([-3.0, 0.0, 1.0, 100.0, 5000.0, 1e6])
    found = in_node("(...row) => forms.relaxation(...row)", t, ratio_lr, ratio_wd, *before.values())
    expected = nc.relaxation(t, ratio_lr=ratio_lr, ratio_wd=ratio_wd, **before)
    np.testing.assert_allclose(floats(found), expected, rtol=1e-12)
    last = in_node("(...row) => forms.transient(...row)", t[-1], ratio_lr, ratio_wd, *before.values())[0]
    after = nc.equilibrium(0.1 * ratio_lr, 5e-4 * ratio_wd, 0.9)
    assert last["angle"] == pytest.approx(after.angle, rel=1e-12)
    assert last["norm"] == pytest.approx(after.norm, rel=1e-4)  # the way is that of the limit of small lr wd


def second_moments(steps, r, q, lr, wd, m):
    """Norm, effective rate and angle after the change: SGD's second moments step by step, noise orthogonal to all."""
    square = nc.equilibrium(lr, wd, m).norm ** 2
    overlap, buffer = lr * wd * square / (1 + m) / lr, 2 * lr * wd * square / (1 + m) / lr**2  # <w, v>, |v|^2
    overlap -= lr * buffer  # of the weights after the step
    lr, wd, found = lr * r, wd * q, []
    for _ in range(steps + 1):
        pushed = m * overlap + wd * square
        buffer = m**2 * buffer + 1 / square + wd**2 * square + 2 * m * wd * overlap
        moved = square - 2 * lr * pushed + lr**2 * buffer
        cosine = (square - lr * pushed) / np.sqrt(square * moved)
        found.append((square**0.5, lr / (1 - m) / square, np.arccos(cosine)))
        square, overlap = moved, pushed - lr * buffer
    return np.array(found)


def test_norm_rate_and_angle_follow_the_second_moments_up_to_the_order_of_lr_wd():
    gaps = []
    for decay, steps in ((1e-3, 4_000), (1e-4, 40_000)):
        row = (0.1, 1.0, 0.1, decay, 0.5)
        t = np.linspace(20, steps, 30).astype(int)  # past the memory of the buffer
        found = in_node("(...row) => Object.values(forms.transient(...row))", t, *row)
        gaps.append(np.abs(floats(found) / second_moments(steps, *row)[t] - 1).max(axis=0))
    assert (gaps[0] < 1e-3).all()  # lr wd
    assert ((gaps[0] / gaps[1] > 5) & (gaps[0] / gaps[1] < 20)).all()  # of first order


def test_the_catapult_is_that_of_normcore_to_the_last_bit():
    scaled, width = (
        x.ravel() for x in np.meshgrid([0.5, 2.0, 2.1, 2.8, 3.3, 3.99, 4.3], 2.0 ** np.array([4, 20, 60]))
    )
    run = nc.catapult.simulate(1.0, 2.0, scaled / 2, width, steps=300)
    found = in_node("(a, n) => forms.catapult(1, 2, a / 2, n, 300)", scaled, width)
    for i, one in enumerate(found):  # the same operations in the same order, each rounded once
        assert np.array_equal(floats(one["outputs"]), run.output[:, i])
        assert np.array_equal(floats(one["curvatures"]) / (scaled[i] / 2), run.curvature[:, i])
        assert one["phase"] == run.phase[i]
    assert set(run.phase) == {"lazy", "catapult", "divergent"} and np.isinf(run.output).any()
    a, n = np.meshgrid([2.1, 2.5, 3.5], [16.0, 2.0**60])
    np.testing.assert_allclose(
        floats(in_node("forms.duration", a, n)), nc.catapult.duration(a, n).ravel(), rtol=1e-12
    )
    ends = nc.catapult.final_curvature(a).ravel()
    np.testing.assert_allclose(floats(in_node("forms.finalCurvature", a)), ends, rtol=1e-12)


REFUSED = {
    "momentum 1": "forms.growthFactor(0.1, 5e-4, 1)",
    "negative rate": "forms.growthFactor(-0.1, 5e-4, 0.9)",
    "an empty field": "forms.growthFactor(0.1, NaN, 0.9)",
    "beyond the critical point": "forms.growthFactor(1, 0.0027, 0.9)",
    "an empty phase": "forms.texp([[0.1, 0]], 5e-4, 0.9)",
    "no decay to settle": "forms.equilibrium(0.1, 0, 0.9)",
    "steps that turn round": "forms.equilibrium(10, 1, 0)",
    "no such weights": "forms.catapult(10, 1, 1, 4, 5)",
}


def test_what_normcore_refuses_is_refused():
    tried = [
        f"() => {{ try {{ return {call}; }} catch (e) {{ return e.name; }} }}" for call in REFUSED.values()
    ]
    told = in_node(f"() => [{', '.join(f'({one})()' for one in tried)}]", [0])[0]
    assert dict(zip(REFUSED, told, strict=True)) == dict.fromkeys(REFUSED, "RangeError")
    assert in_node("() => forms.growthFactor(1, 0.0026, 0.9) < 1", [0]) == [True]


# ---- the files


def test_scripts_are_short_ask_nobody_and_are_all_on_the_page():
    assert {path.stem for path in STATIC.glob("*.js")} == set(SCRIPTS)
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 200, path.name
        assert set(re.findall(r"\w+://[\w./]+", text)) <= {
            "http://www.w3.org/2000/svg"
        }  # a name, not a request
    assert (
        tuple(re.findall(r"interactive/(\w+)\.js", PAGE)) == SCRIPTS
    )  # in this order: each needs those before
    assert set(FIGURES) == set(SCRIPTS[2:])


def colours(theme):
    css = (STATIC / "interactive.css").read_text()
    block = re.search(rf"^html{re.escape(theme)} {{(.*?)}}", css, re.MULTILINE)[1]
    return dict(re.findall(r"--nc-([\w-]+): (#\w{6})", block))


def contrast(one, other):
    def luminance(colour):
        part = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4) @ [
            0.2126,
            0.7152,
            0.0722,
        ]

    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["", '[data-theme="dark"]'])
def test_words_and_lines_stand_out_from_the_card(theme):
    found = colours(theme)
    words = {name for name in found if name in ("ink", "soft", "theory") or name.endswith("-ink")}
    assert len(words) == 6
    assert all(contrast(found[name], found["card"]) >= 4.5 for name in words)
    assert all(contrast(found[name], found["card"]) >= 3 for name in ("decay", "exponential", "control"))
    assert contrast(found["grid"], found["card"]) < 3  # the measure tells them apart


def test_the_palette_is_that_of_the_figures():
    found = colours("")
    assert [found[name] for name in ("decay", "exponential", "control", "theory")] == [
        plots.DECAY,
        plots.EXPONENTIAL,
        plots.CONTROL,
        "#000000",
    ]


def test_the_numbers_that_stand_without_scripts():
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]", lambda c: "0123456789-"["⁰¹²³⁴⁵⁶⁷⁸⁹⁻".index(c[0])], PAGE)
    decayed = nc.texp([(0.1, 80 * 391), (0.01, 40 * 391), (0.001, 180 * 391)], 5e-4, 0.9)
    root = nc.growth_factor(0.1, 5e-4, 0.9)
    limit = np.log((2 - 2**-24) * 2.0**127)
    start = [
        np.argmax(nc.equivalent_schedule(0.1, 5e-4, 0.9, start=start, steps=91_000).log_lr >= limit)
        for start in ("stationary", "zero")
    ]
    level, later = nc.equilibrium(0.1, 5e-4, 0.9), nc.equilibrium(0.01, 5e-4, 0.9)
    flight = nc.catapult.simulate(1.0, 2.0, 1.4, 2**20, steps=60)
    climb = -2 * np.log(nc.growth_factor(0.001, 5e-4, 0.9))
    beyond = len(decayed.log_lr) - 1 + np.ceil((limit - decayed.log_lr[-1]) / climb)
    for said in [
        *(f"{nc.growth_factor(lr, 5e-4, 0.9) ** -782:.5f}" for lr in (0.1, 0.01, 0.001)),
        f"10^{decayed.log_lr[-1] / np.log(10):.2f}",
        f"{100 * 5e-5 / (1 - 0.9**0.5) ** 2:.1f} percent of the critical {(1 - 0.9**0.5) ** 2:.3g}",
        f"in step {beyond:,.0f}, and without the two divisions in step {start[0]:,}",
        *(f"{(1 - 0.5**0.5) ** 2:.3g}", "2.51·10-5", "2.5·10-7"),
        f"the root is {root:.8f}, and the rate doubles every {np.log(2) / (-2 * np.log(root)):.0f} steps",
        f"the norm is {level.norm:.2f}, the effective rate {level.effective_lr:.4f}, the angle a step {level.angle:.5f}",
        f"the effective rate is {0.1 * level.effective_lr:.5f} at once and {later.effective_lr:.2g} in the end",
        f"a time constant of {later.relaxation_steps:,.0f} steps; the norm goes to {later.norm:.2f}",
        f"rises to {round(flight.loss.max() / flight.loss[0], -3):,.0f} times its start",
        f"peak at step {flight.loss.argmax()}, and falls to zero at a curvature of {1.4 * flight.curvature[-1]:.4f}",
    ]:
        assert said in text, said
    assert ["zero", "nine"][int(start[1] - start[0] == 9)] + " at these values" in text
    assert f"{(1 - 0.99**0.5) ** 2:.2e} {(1 - 0.999**0.5) ** 2:.1e}" == "2.51e-05 2.5e-07"


# ---- the page, in a browser

DRIVER = """
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
document.addEventListener("securitypolicyviolation", (event) => errors.push("asked for " + event.blockedURI));
const observers = [];  // a headless page under virtual time draws too few frames for the real one
window.ResizeObserver = class { constructor(call) { observers.push(call); } observe() {} };
function resize(width) {
  document.body.style.width = width;
  observers.forEach((call) => call());
}
const told = (host) => [...host.querySelectorAll(".value, .note, .warning")].map((one) => one.textContent).join("|");
const drawn = (host) => [...host.querySelectorAll("path")].map((one) => one.getAttribute("d")).join("");
function put(input, value) {
  input.value = value;
  input.dispatchEvent(new Event("input", { bubbles: true }));
}
function inspect(host) {
  const inputs = [...host.querySelectorAll("input")], slider = inputs.find((one) => one.type === "range");
  const found = { name: host.dataset.figure, start: told(host) };
  const hidden = [...host.children].filter((one) => one.tagName === "P");
  found.fallback = hidden.length > 0 && hidden.every((one) => one.hidden && one.offsetHeight === 0);
  found.dressed = getComputedStyle(host).borderTopLeftRadius === "10px";
  found.reachable = inputs.length >= 4 && inputs.every((one) => one.tabIndex === 0 && one.offsetWidth > 20);
  found.named = inputs.every((one) => one.ariaLabel || one.labels.length === 1);
  found.live = host.querySelector(".told").ariaLive === "polite" && host.querySelector("svg").getAttribute("role") === "img";
  const before = drawn(host), value = slider.value;
  put(slider, value);
  found.still = told(host) === found.start && drawn(host) === before;
  slider.focus();
  slider.stepUp(20);
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  [found.moved, found.redrawn] = [told(host), drawn(host) !== before];
  found.followed = slider.nextElementSibling.value;
  put(slider.nextElementSibling, "");
  found.warned = host.querySelector(".warning").textContent;
  put(slider, value);
  found.back = told(host) === found.start && drawn(host) === before;
  found.wide = host.querySelector("svg").clientWidth;
  resize("366px");
  found.narrow = host.querySelector("svg").clientWidth;
  const edge = host.getBoundingClientRect().right;
  found.fits = [...host.querySelectorAll("*")].every((one) => one.getBoundingClientRect().right <= edge + 1);
  resize("");
  return found;
}
addEventListener("load", () => {
  const report = { figures: [] };
  try {
    for (const host of document.querySelectorAll("[data-figure]")) report.figures.push(inspect(host));
    const board = document.querySelector(".board-filter"), menu = board.querySelector("select");
    report.rows = [document.querySelector("[role=status]:not(.told)").textContent];
    menu.value = "C";
    menu.dispatchEvent(new Event("change", { bubbles: true }));
    report.rows.push(document.querySelector("[role=status]:not(.told)").textContent);
    report.shown = [...document.querySelectorAll(".score")].filter((one) => one.offsetHeight > 0).map((one) => one.id);
    report.menus = [...board.querySelectorAll("select")].every((one) => one.tabIndex === 0 && one.labels.length === 1);
    report.squares = [...document.querySelectorAll(".square")].every((one) => one.tabIndex === 0 && one.href && one.title);
  } catch (error) { errors.push(String(error)); }
  report.errors = errors;
  const result = document.createElement("script");
  Object.assign(result, { type: "application/json", id: "report", textContent: JSON.stringify(report) });
  document.body.append(result);
});
"""


LOCAL = """<meta http-equiv="Content-Security-Policy" content="default-src file: 'unsafe-inline'">"""


def browsed(folder, extra=""):
    """What the driver reports of the page's raw parts, its paragraphs, and a scoreboard."""
    if BROWSER is None:
        pytest.skip("no chromium or google-chrome")
    (folder / "book").mkdir()
    (folder / "_static").symlink_to(BOOK / "_static")
    sys.path.insert(0, str(BOOK / "_ext"))
    try:
        from scoreboard import _filter, _map
    finally:
        sys.path.pop(0)
    board = load_scoreboard(BOOK.parent)
    rows = "".join(
        f'<div class="score" id="row-{row.id}" data-verdict="{row.verdict}">{row.id}</div>'
        for rows in board.values()
        for row in rows
    )
    body = re.sub(r"```(\{raw\} html)?\n", "", PAGE[PAGE.index("<link") :])
    body = re.sub(r"^(At .*)$", r"<p>\1</p>", body, flags=re.MULTILINE)
    page = (
        f'<!doctype html><html><head><meta charset="utf-8">{LOCAL}<script>{DRIVER}</script>'
        f'<link rel="stylesheet" href="../_static/book.css"><script defer src="../_static/scoreboard.js"></script>'
        f"</head><body>{body}{extra}{_map(board, '')}{_filter(board)}{rows}</body></html>"
    )
    (folder / "book" / "page.html").write_text(page, encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"]
    command = [BROWSER, *options, f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    address = (folder / "book" / "page.html").as_uri()
    done = subprocess.run([*command, address], capture_output=True, text=True, timeout=300, check=False)
    found = re.search(r'<script type="application/json" id="report">(.*?)</script>', done.stdout, re.DOTALL)
    assert found, done.stderr[-3000:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.slow
def test_every_figure_and_the_scoreboard_answer_in_a_browser(tmp_path):
    report = browsed(tmp_path)
    assert report["errors"] == []
    assert [figure["name"] for figure in report["figures"]] == FIGURES
    for figure in report["figures"]:
        facts = ("fallback", "dressed", "reachable", "named", "live", "still", "redrawn", "back", "fits")
        assert {name: figure[name] for name in facts} == dict.fromkeys(facts, True), figure["name"]
        assert figure["moved"] != figure["start"] and "NaN" not in figure["start"] + figure["moved"]
        assert figure["followed"] not in ("", figure["start"]) and "must be" in figure["warned"]
        assert figure["wide"] > 800 and 250 < figure["narrow"] <= 366
    assert report["menus"] and report["squares"] and report["rows"][0] != report["rows"][1]
    assert report["shown"] and all(id.startswith("row-C") for id in report["shown"])
    schedule = report["figures"][0]["start"]
    assert "1.4812|then ×\u00a01.0399, then ×\u00a01.0039" in schedule and "|6,310,207|" in schedule


@pytest.mark.slow
def test_an_error_and_a_request_would_be_told(tmp_path):
    planted = browsed(
        tmp_path, extra='<script>missing();</script><img alt="" src="http://example.org/x.png">'
    )
    told = "|".join(planted["errors"])
    assert "missing is not defined" in told and "asked for http://example.org" in told
