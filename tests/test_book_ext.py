"""The extensions that render the book, without Sphinx; `tests/test_pages.py` looks at what comes of them."""

import base64
import io
import itertools
import re
from pathlib import Path

import nbformat
import pytest
from PIL import Image, ImageChops, ImageDraw

import normcore as nc
from normcore import bookkit, lab
from normcore.bookkit.chapters import chapter_paths, notebook_records

ROOT = Path(__file__).parent.parent


@pytest.fixture
def ext(monkeypatch):
    """book/_ext on the path."""
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))


# ---- the house


def test_the_house_is_drawn_on_five_floors_and_every_line_runs_down(ext):
    import house

    files = house.rooms()
    arrows = {room: house.uses(own) - {room} for room, own in files.items()}
    plan = house.floors(arrows)
    place = {room: row for row, level in enumerate(plan) for room in level}
    assert len(plan) == 5 and place.keys() == files.keys() and not house.DOORS & place.keys()
    assert all(place[other] < place[room] for room, needs in arrows.items() for other in needs)
    drawn = house.drawing(arrows, dict.fromkeys(arrows, 1))
    assert drawn.count("<path") == sum(map(len, arrows.values())) and drawn.count("<rect") == len(files)


# ---- the API pages


def test_every_public_name_is_on_exactly_one_api_page(ext):
    import api

    asked = [
        package
        for page in (ROOT / "book" / "api").glob("*.md")
        for package in re.findall(
            r"\.\. api:: (\S+)(?:\n   :without: (\S+))?", page.read_text(encoding="utf-8")
        )
    ]
    shown = [
        name
        for package, other in asked
        for name in api.public(package)
        if name not in api.public(other or "-")
    ]
    doors = {
        "normcore": nc,
        "normcore.lab": lab,
        "normcore.bookkit": bookkit,
        "normcore.catapult": nc.catapult,
    }
    modules = {("normcore", "catapult"), ("normcore.bookkit", "plots")}
    public = {(door, name) for door, module in doors.items() for name in module.__all__} - modules
    assert sorted(shown) == sorted(public)
    assert api.public("normcore.equivalence") and not api.public("normcore.equi")


def test_every_api_page_is_in_the_contents_and_in_the_overview():
    contents, overview = (ROOT / "_toc.yml").read_text(), (ROOT / "book" / "api.md").read_text()
    pages = {path.stem for path in (ROOT / "book" / "api").glob("*.md")}
    assert (
        set(re.findall(r"book/api/(\w+)", contents))
        == pages
        == set(re.findall(r"\(api/(\w+)\.md\)", overview))
    )


def test_navigation_titles_have_at_most_four_words():
    contents = (ROOT / "_toc.yml").read_text()
    titles = re.findall(r'title: "?([^"\n]+)', contents)
    assert len(titles) >= len(re.findall(r"book/\d\d_", contents)) == len(chapter_paths(ROOT))
    assert all(len(title.split()) <= 4 for title in titles)


# ---- docstrings


@pytest.mark.parametrize(
    "text, shown",
    [
        ("lr~_t = lr alpha^(-2t-1)", r"\tilde{\mathrm{lr}}_{t} = \mathrm{lr}\,\alpha^{-2t-1}"),
        ("x_{t+1} = x_t - lr_t p_{t+1}", r"x_{t+1} = x_{t} - \mathrm{lr}_{t}\,p_{t+1}"),
        ("1/(r q) exp(-p lambda_e t)", r"1/(r\,q)\,\exp(-p\,\lambda_{e}\,t)"),
        ("e(t)/e_before = [a]^(-1/2)", r"e(t)/e_{\mathrm{before}} = [a]^{-1/2}"),
        ("lr (1+m) D / (2 h weight_decay R)", r"\mathrm{lr}\,(1+m)\,D / (2\,h\,\mathrm{weight\_decay}\,R)"),
        ("P' = (1-r)^2 P,   s = (P-Q)/2", r"P' = (1-r)^2\,P, \\ s = (P-Q)/2"),
        ("from movements: (1+m) D", r"\text{from movements: }\quad (1+m)\,D"),
    ],
)
def test_formulas_in_tex(ext, text, shown):
    import docstrings

    assert docstrings.tex(text) == shown


@pytest.mark.parametrize(
    "line, shown",
    [
        ("from theta_t on, |w|^4", r"from \ :math:`\theta_{t}`\  on, \ :math:`|w|^4`\ "),
        ("`lr_t` is code, grad_sq_norm and log_lr are names", None),
        ("    theta, buf: weights", None),
        ("a | b and lr*wd", r"a \| b and lr\*wd"),
        ("Theorem 2.12.", "Theorem :doc:`2.12 </book/04_texp>`."),
        (
            "Theorems 2.1 and 2.9",
            "Theorems :doc:`2.1 </book/02_weight_decay>` and :doc:`2.9 </book/03_momentum>`",
        ),
        ("Lemma 1.3, chapter 2.1, Theorem 9.9", None),
        ("arXiv 1910.07454,", "arXiv `1910.07454 <https://arxiv.org/abs/1910.07454>`__,"),
    ],
)
def test_prose_in_restructured_text(ext, line, shown):
    import docstrings

    assert docstrings.prose(line) == (line if shown is None else shown)


def test_displays_are_indented_blocks_of_prose_and_examples_stay(ext):
    import docstrings

    lines = [
        "One step is",
        "",
        "    x' = a x,   y' = b",
        "    z = c",
        "",
        "so.",
        "",
        "Args:",
        "    x: a_t",
        "",
        "Example:",
    ]
    lines += ["    >>> a_t = |x|"]
    done = docstrings.rewrite(lines)
    assert done[2:5] == [
        ".. math::",
        "",
        "   " + r"\begin{gathered}x' = a\,x, \\ y' = b \\ z = c\end{gathered}",
    ]
    assert done[-1] == lines[-1] and r"    x: \ :math:`a_{t}`\ " in done


def test_chapters_of_theorems_are_chapters(ext):
    import docstrings

    assert all((ROOT / "book" / f"{name}.ipynb").exists() for name in docstrings.CHAPTERS.values())


def test_types_are_shown_as_they_are_written(ext):
    import docstrings

    assert docstrings.as_written(nc.equilibrium)["lr"] == "Number"
    assert docstrings.as_written(nc.equilibrium)["return"] == "Equilibrium"
    assert docstrings.as_written(nc.Equilibrium.__init__) == dict.fromkeys(
        ("norm", "effective_lr", "angle", "relaxation_steps"), "Number"
    )


# ---- figures, formulas, code, claims


def drawn(*boxes, size=(800, 300)):
    picture = Image.new("RGB", size, "white")
    for box in boxes:
        ImageDraw.Draw(picture).rectangle(box, fill="black")
    return picture


LEFT, RIGHT = (60, 20, 350, 280), (500, 20, 780, 280)


@pytest.mark.parametrize(
    "boxes, between",
    [
        ([LEFT], None),
        ([LEFT, RIGHT], (350, 500)),
        ([LEFT, RIGHT, (470, 30, 480, 200)], (350, 470)),  # a column of numbers
        ([LEFT, RIGHT, (470, 30, 480, 200), (440, 130, 450, 160)], (350, 440)),  # and a short rotated label
        ([LEFT, RIGHT, (356, 60, 420, 70)], (420, 500)),  # a word beside a curve
        ([LEFT, RIGHT, (356, 60, 362, 200), (370, 60, 420, 200)], (420, 500)),  # words one below another
        ([LEFT, RIGHT, (354, 284, 360, 293)], (360, 500)),  # a digit below the end of the axis
        ([(20, 20, 180, 280), (189, 20, 780, 280)], None),  # rows with long names
        ([LEFT, RIGHT, (340, 150, 510, 152)], None),  # a line from panel to panel
    ],
)
def test_figures_are_cut_between_panels(ext, boxes, between):
    import panels

    found = panels.cuts(drawn(*boxes))
    assert found == [] if between is None else len(found) == 1 and between[0] < found[0] < between[1]


def test_cut_panels_make_the_whole(ext, tmp_path):
    import panels

    path = tmp_path / "figure.png"
    drawn(LEFT, RIGHT).save(path)
    parts = panels.cut(path)
    widths = [Image.open(part).width for part, _ in parts]
    assert len(parts) == 2 and sum(widths) == 800
    assert [share for _, share in parts] == [width / 800 for width in widths]
    drawn(LEFT).save(path)
    assert panels.cut(path) == [(path, 1.0)]


def stored_figures():
    """Each picture that a chapter keeps, with the code that drew it."""
    for path in chapter_paths(ROOT):
        for cell in nbformat.read(path, 4).cells:
            for output in cell.get("outputs", []):
                if png := output.get("data", {}).get("image/png"):
                    yield cell.source, Image.open(io.BytesIO(base64.b64decode(png)))


def framed(picture):
    """Whether a picture has a blank frame, so that no word of it is cut."""
    blank = Image.new("RGB", picture.size, "white")
    beyond = ImageChops.difference(picture.convert("RGB"), blank).convert("L")
    left, top, right, bottom = beyond.point(lambda value: 255 * (value > 8)).getbbox()
    return min(left, top, picture.width - right, picture.height - bottom) >= 2


def test_no_word_of_a_figure_is_cut_and_every_panel_stands_alone(ext):
    import panels

    drawings = {
        "draw.block_degrees": 2,
        "subplot_mosaic": 2,
    }  # panels that are no axes of their own, or not in a row
    for source, picture in stored_figures():
        asked = re.search(r"plots\.panels\((\d?)", source)
        count = next((n for name, n in drawings.items() if name in source), asked and int(asked[1] or 1))
        edges = [0, *panels.cuts(picture), picture.width]
        assert len(edges) == count + 1, source
        for left, right in itertools.pairwise(edges):
            assert framed(picture.crop((left, 0, right, picture.height))), source
    assert framed(drawn(LEFT)) and not framed(drawn((400, 20, 799, 280)))


def test_displays_part_where_no_group_is_open(ext):
    import displays

    assert displays.parts(r"a = b, \qquad c = d") == ["a = b,", "c = d"]
    for whole in (r"{a \qquad b}", r"\left(a \qquad b\right)", r"\begin{x} a \qquad b \end{x}", r"a \quad b"):
        assert displays.parts(whole) == [whole]
    assert displays.parts(r"\{a \qquad b\}") == [r"\{a", r"b\}"]


def test_code_is_linked_where_the_api_has_the_name(ext):
    import code_links

    where = {"normcore.catapult.simulate": "A#1", "normcore.lab.run": "B#2", "normcore.texp": "C#3"}
    code = spans("y = nc.catapult.simulate(lab.run.x, x.nc.texp, other.run, nc.unknown)")
    done = code_links.CHAIN.sub(lambda found: code_links.linked(found[0], where.get), code)
    assert re.findall(r'<a [^>]*href="([^"]*)">(.*?)</a>', done) == [
        ("A#1", spans("nc.catapult.simulate").strip()),
        ("B#2", spans("lab.run").strip()),
    ]
    assert re.sub(r"</?a\b[^>]*>", "", done) == code


def test_links_in_code_know_the_names_of_the_set_up_cell(ext):
    import code_links

    cells = nbformat.read(chapter_paths(ROOT)[0], 4).cells
    first = next(cell.source for cell in cells if cell.cell_type == "code")
    given = dict(re.findall(r"import (\w+) as (\w+)", first))
    plain = re.search(r"from normcore import (.*)", first)[1].split(", ")
    assert {
        given["normcore"]: "normcore",
        **{name: f"normcore.{name}" for name in plain},
    } == code_links.MODULES


def spans(code):
    """Code as Sphinx highlights it."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return highlight(code, PythonLexer(), HtmlFormatter(nowrap=True))


def test_claims_are_found_in_the_cells_that_make_them(ext):
    import scoreboard

    sources = [
        'claim("E1/a", 1)',
        'for n in x:\n    claim(f"{row}/{n}-b", 1)\n    claim(id)',
        'same("E1/c")',
        'guards="E1/a"',
    ]
    ids = ["E1/a", "E2/x-b", "E1/hidden", "E1/c", "E1/c-logits"]
    assert scoreboard.makers(sources, ids) == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("path", chapter_paths(ROOT), ids=lambda path: path.stem)
def test_claims_of_a_chapter_come_in_the_order_of_its_cells(ext, path):
    import scoreboard

    cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    ids = [record.id for record in notebook_records(path)]
    made = scoreboard.makers(cells, ids)
    assert made == sorted(made) and made[-1] < len(cells) - 1
    assert sum(f'"{id}"' in cells[i] for id, i in zip(ids, made, strict=True)) > len(ids) / 3


def test_a_check_of_a_verdict_table_is_linked_to_its_row_and_its_cell(ext):
    import scoreboard

    cell = "<td><code>E2/direction-layer</code></td>"
    assert scoreboard.CHECK.sub(scoreboard._linked, cell) == (
        '<td><code><a href="scoreboard.html#row-E2">E2</a>/<a href="#claim-e2-direction-layer">direction-layer</a></code></td>'
    )
    assert (
        scoreboard.CHECK.sub(scoreboard._linked, "<td><code>nc.texp</code></td>")
        == "<td><code>nc.texp</code></td>"
    )


def test_references_lead_to_the_papers():
    entries = re.findall(r"@\w+\{.*?\n\}", (ROOT / "book" / "references.bib").read_text(), re.DOTALL)
    papers = re.compile(r"eprint = \{\d{4}\.\d{5}\},\n  archivePrefix = \{arXiv\}|url = \{https://\S+\}")
    assert len(entries) > 20 and all(papers.search(entry) for entry in entries)
    assert not any("note = {arXiv" in entry for entry in entries)
