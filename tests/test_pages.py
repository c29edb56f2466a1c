"""`make pages` finds planted faults, and the scripts of the pages do what they say (headless Chromium)."""

import json
from pathlib import Path

import pages
import pytest
import yaml

STATIC = Path(__file__).parent.parent / "book" / "_static"
ALT = "a picture of nothing at all"
PAGE = '<!doctype html><html lang="en"><head><meta charset="utf-8">' + (
    '<meta name="viewport" content="width=device-width"><title>A page</title><style>'
    "body{font:16px sans-serif;margin:8px} pre{overflow-x:auto} "
    "@media (prefers-color-scheme:dark){body{background:#111;color:#eee}}"
    "</style>HEAD</head><body><article>BODY</article></body></html>"
)
SLIDER = '<div data-figure="live"><input type="range" aria-label="x" oninput="nextElementSibling.textContent = value" MORE><b>50</b></div>'
GOOD = (
    '<h1>A page</h1><p>Words, <a style="color:inherit" href="#there">a link</a>.</p><p id="there">There.</p>'
    f'<pre>x = 1</pre><img alt="{ALT}" src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" width="9" height="9">'
    "<details><summary>More</summary><p>folded</p></details>"
    + SLIDER.replace("MORE", 'onpointerdown="held = value" onpointercancel="value = held; oninput()"')
)
LONG = "x" * 400
FAULTS = {
    "script": "<script>missing()</script>",
    "console": "<script>console.error('no')</script>",
    "request": f'<img src="http://example.org/x.png" alt="{ALT}">',
    "missing": f'<img src="gone.png" alt="{ALT}">',
    "sideways": '<div style="width:2000px">wide</div>',
    "cut code": f'<pre tabindex="0" role="region" aria-label="Code">{LONG}</pre>',
    "cut": f"<table><tr><td>{LONG}</td></tr></table>",
    "not reachable": f'<div style="overflow-x:auto">{LONG}</div>',
    "tab stop": '<mjx-container tabindex="0">x</mjx-container>',
    "tab order": '<p tabindex="3">first</p>',
    "nameless": '<a href="#there"><img alt="" src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" width="9" height="9"></a>',
    "alt": '<img alt="x" src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" width="9" height="9">',
    "leads nowhere": '<a style="color:inherit" href="#nowhere">x</a>',
    "contrast 2.85": '<p style="background:#fff;color:#999">grey</p>',
    "contrast 1.61": '<details><summary>More</summary><p style="background:#fff;color:#ccc">pale</p></details>',
    "contrast 2.68": '<p style="background:#fff;color:#000;opacity:0.38">faded</p>',
    "thin": '<figure><figcaption style="font-weight:300">thin</figcaption></figure>',
    "titles": "<h1>Another</h1>",
    "figure": '<div data-figure="dead"><input type="range" aria-label="x"></div>',
    "finger": SLIDER.replace("MORE", 'style="pointer-events: none"'),
    "swipe": SLIDER.replace("MORE", ""),
    "preview": '<a style="color:inherit" class="internal" href="#fig-x" id="fig-x">Fig. 1</a>',
}


def stored_titles():
    return [line.split(": ", 1)[0] for line in pages.TITLES.read_text(encoding="utf-8").splitlines()]


def written(folder, body, head="", name="page"):
    path = folder / f"{name}.html"
    path.write_text(PAGE.replace("HEAD", head).replace("BODY", body), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser():
    if pages.BROWSER is None:
        pytest.skip("no chromium or google-chrome")
    with pages.Browser() as opened:
        yield opened


def kinds(faults):
    return {fault.split(":")[0] for found in faults.values() for fault in found}


@pytest.mark.slow
def test_a_good_page_has_no_faults(browser, tmp_path):
    faults, title, tall = pages.inspect(browser, written(tmp_path, GOOD))
    assert faults == {state: [] for state in pages.STATES}
    assert title == "A page" and 100 < tall["wide light"] <= 900


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
def test_a_planted_fault_is_told_and_no_other(browser, tmp_path, kind):
    faults, *_ = pages.inspect(browser, written(tmp_path, GOOD + FAULTS[kind]))
    wide = {"cut", "sideways", "finger"}  # a phone zooms out on a wide page, and the finger misses
    beside = {"cut": wide, "sideways": wide, "figure": {"finger", "swipe"}}.get(kind, set())
    assert kind in kinds(faults) and kinds(faults) <= {kind, *beside}


@pytest.mark.slow
def test_what_is_wrong_in_the_dark_is_told_of_the_dark_alone(browser, tmp_path):
    faults, *_ = pages.inspect(browser, written(tmp_path, GOOD + '<p style="color:#555">dim</p>'))
    assert [state for state, found in faults.items() if found] == ["wide dark", "phone dark"]


@pytest.mark.slow
def test_titles_are_compared_and_a_sheet_is_written(tmp_path, monkeypatch, capsys):
    root = tmp_path / "html"
    root.mkdir()
    written(root, GOOD, name="one")
    monkeypatch.setattr(pages, "TITLES", tmp_path / "titles.txt")
    pages.TITLES.write_text("one: A page\n")
    if pages.BROWSER is None:
        pytest.skip("no chromium or google-chrome")
    assert pages.main(root) == 0
    assert "one.phone-dark.jpg" in (tmp_path / "pages" / "index.html").read_text()
    assert (tmp_path / "pages" / "one.wide-light.jpg").read_bytes()[:2] == b"\xff\xd8"
    pages.TITLES.write_text("one: Another\ntwo: B\n")
    assert pages.main(root) == 1
    said = capsys.readouterr().out
    assert "'A page' is not that of titles.txt, 'Another'" in said and "no page two" in said


def test_without_a_browser_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pages, "BROWSER", None)
    assert pages.main(tmp_path) == 0 and "skipped" in capsys.readouterr().out


@pytest.mark.slow
def test_the_book_on_paper_keeps_its_order_its_titles_and_its_links(tmp_path):
    pypdf = pytest.importorskip("pypdf")
    import pdf

    if pages.BROWSER is None:
        pytest.skip("no chromium or google-chrome")
    there = '<p id="there" style="break-before:page">There.</p>'
    for name, other in (("one", "two.html#there"), ("two", "gone.html")):
        written(tmp_path, f'<a href="{other}">other</a> <a href="#there">here</a>{there}', name=name)
    assert pdf.bind(tmp_path, ["two", "one"], tmp_path / "book.pdf") == 4
    book = pypdf.PdfReader(tmp_path / "book.pdf")
    assert [book.get_destination_page_number(one) for one in book.outline] == [0, 2]
    assert [one.title for one in book.outline] == ["A page"] * 2
    sheets = [sheet.indirect_reference for sheet in book.pages]
    links = [[one.get_object() for one in sheet.get("/Annots", [])] for sheet in book.pages]
    spots = [[one.get("/Dest") or one["/A"]["/D"] for one in found] for found in links]
    led = [[sheets.index(list.__getitem__(spot, 0)) for spot in found] for found in spots]
    assert led == [[1], [], [0, 3], []]  # the link to a page that is not in the book is gone
    assert str(tmp_path).encode() not in (tmp_path / "book.pdf").read_bytes()


def test_the_reading_order_is_that_of_the_contents():
    pytest.importorskip("pypdf")
    import pdf

    names = list(pdf.reading_order(yaml.safe_load(pdf.CONTENTS.read_text(encoding="utf-8"))))
    assert names[:2] == ["book/index", "book/01_scale_invariance"] and len(set(names)) == len(names)
    assert set(names) == {name for name in stored_titles() if name.startswith("book/")}


# ---- the scripts of the pages


def scripted(folder, name, body):
    link = folder / "_static"
    link.mkdir()
    for path in STATIC.glob("*.*s"):
        (link / path.name).symlink_to(path)
    head = f'<link rel="stylesheet" href="_static/book.css"><script defer src="_static/{name}.js"></script>'
    return written(folder, body, head)


@pytest.mark.slow
def test_what_scrolls_is_reached_named_and_fades(browser, tmp_path):
    body = f"<h1>A page</h1><pre id=wide>{LONG}</pre><pre id=small>x</pre><details><summary>s</summary><pre id=folded>{LONG}</pre></details>"
    path = scripted(tmp_path, "reading", body)
    browser.dress(390, "light", "screen")
    browser.open(path)
    state = "(id) => ((one) => [one.tabIndex, one.role, one.ariaLabel, one.className])(document.getElementById(id))"
    later = "new Promise((done) => setTimeout(done, 200))"
    marked = [0, "region", "Code, scrolls sideways", "more scrolls"]
    assert browser.value(f"{later}.then(() => ['wide', 'small', 'folded'].map({state}))") == [
        marked,
        [-1, None, None, ""],
        [-1, None, None, ""],
    ]
    browser.value(
        "document.querySelector('details').open = true; document.getElementById('wide').scrollLeft = 1e5"
    )
    wide, folded = browser.value(f"{later}.then(() => ['wide', 'folded'].map({state}))")
    assert wide == [*marked[:3], "scrolls"] and folded == marked
    assert not any("not reachable" in fault for fault in pages.inspect(browser, path)[0]["phone light"])


@pytest.mark.slow
def test_a_single_figure_fills_the_screen_of_a_phone(browser, tmp_path):
    drawing = "<svg xmlns='http://www.w3.org/2000/svg' width='200' height='100'/>"
    picture = f'<a href="#"><img alt="{ALT}" src="data:image/svg+xml,{drawing}" style="width:100%"></a>'
    body = f'<h1>A page</h1><div class="panels">{picture}</div><div class="panels several">{picture}</div>'
    path = scripted(tmp_path, "reading", body)
    tap = "document.querySelectorAll('.panels a')[{}].click()"
    shown = "((one) => one && [one.getBoundingClientRect()].map((box) => [box.width, box.height])[0])(document.querySelector('dialog[open] img'))"
    for width, which, expected in ((390, 0, [390, 900]), (390, 1, None), (1280, 0, None)):
        browser.dress(width, "light", "screen")
        browser.open(path)
        browser.value(tap.format(which))
        assert browser.value(shown) == expected  # upright, so turned
    browser.dress(390, "light", "screen")
    browser.open(path)
    browser.value(tap.format(0))
    browser.press("Escape", 27)
    assert browser.value(f"{pages.DRAWN}.then(() => document.querySelector('dialog'))") is None


@pytest.mark.slow
def test_on_paper_proofs_and_verdicts_are_open_and_other_code_is_away(browser, tmp_path):
    fold = '<details class="hide"><summary>Show</summary><pre>folded</pre></details>'
    kinds = {
        "proof": f'<div class="cell tag_hide-cell">{fold}</div>',
        "plot": f'<div class="cell">{fold}</div>',
    }
    kinds["verdicts"] = '<details class="verdicts"><summary>2 checks</summary><p>held</p></details>'
    body = "".join(f'<section id="{name}">{part}</section>' for name, part in kinds.items())
    browser.dress(1280, "light", "print")
    browser.open(scripted(tmp_path, "reading", f"<h1>A page</h1>{body}"))
    seen = "['proof', 'plot', 'verdicts'].map((id) => document.getElementById(id).innerText.trim())"
    assert browser.value(seen) == ["", "", "2 checks"]
    browser.value("dispatchEvent(new Event('beforeprint'))")
    proof, plot, verdicts = browser.value(seen)
    assert "folded" in proof and plot == "" and "held" in verdicts


@pytest.mark.slow
def test_a_link_shows_what_it_leads_to(browser, tmp_path):
    body = (
        '<h1>A page</h1><a class="internal" href="page.html#thm">theorem</a> '
        '<a class="internal" href="page.html#none">nothing</a> <a href="page.html#thm">no reference</a>'
    )
    path = scripted(tmp_path, "previews", body)
    (tmp_path / "_static" / "previews").mkdir()
    shown = {
        "thm": '<p id="thm">Said here, <img src="a.png" alt=""> <a class="headerlink" href="#thm">#</a></p>'
    }
    (tmp_path / "_static" / "previews" / "page.js").write_text(f'previews["page"] = {json.dumps(shown)};')
    browser.dress(1280, "light", "screen")
    browser.open(path)
    told = "((box) => (box.hidden ? null : box.innerText.trim()))(document.getElementById('preview'))"

    def after(event, link):
        act = (
            f"document.querySelectorAll('a')[{link}].dispatchEvent(new Event('{event}', {{ bubbles: true }}))"
        )
        return browser.value(f"{act}, new Promise((done) => setTimeout(() => done({told}), 700))")

    assert browser.value(told) is None
    assert after("mouseover", 0) == "Said here,"
    assert browser.value("document.querySelector('#preview img').src").endswith("/a.png")
    assert browser.value("document.querySelectorAll('#preview [id]').length") == 0
    assert browser.value("document.querySelector('a').getAttribute('aria-describedby')") == "preview"
    browser.press("Escape", 27)
    assert browser.value(told) is None
    assert after("focusin", 0) == "Said here,"
    assert after("mouseover", 1) is None and after("mouseover", 2) is None
    assert set(pages.complaints(browser.events)) == {f"missing: {(tmp_path / 'a.png').as_uri()}"}


@pytest.mark.slow
def test_a_faded_square_of_the_scoreboard_brings_its_row_back(browser, tmp_path):
    rows = "".join(
        f'<a class="square" href="#row-{id}">{id}</a><div class="score" id="row-{id}" data-verdict="held">{id}</div>'
        for id in ("E1", "C1")
    )
    menu = '<select data-filter="row"><option value="">all</option><option>C</option></select>'
    board = f'<h1>A page</h1><div class="board-filter" hidden>{menu}<span role="status"></span></div>{rows}'
    browser.open(scripted(tmp_path, "scoreboard", board))
    hidden = "[...document.querySelectorAll('.score')].map((one) => one.hidden)"
    menu = "((one) => ((one.value = 'C'), one.dispatchEvent(new Event('change'))))(document.querySelector('select'))"
    assert browser.value(f"{menu}, {hidden}") == [True, False]
    browser.value("document.querySelectorAll('.square')[1].click()")
    assert browser.value(hidden) == [True, False]
    browser.value("document.querySelector('.square').focus()")
    browser.call(
        "Input.dispatchKeyEvent",
        type="keyDown",
        key="Enter",
        code="Enter",
        windowsVirtualKeyCode=13,
        text="\r",
    )
    assert browser.value(f"[...{hidden}, location.hash]") == [False, False, "#row-E1"]
