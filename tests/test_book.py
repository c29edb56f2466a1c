"""The chapters as they are stored."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import nbformat
import pytest

from normcore.bookkit import chapters, robust
from normcore.bookkit.chapters import directives
from normcore.bookkit.scoreboard import NOT_TESTED, load_scoreboard
from normcore.experiments import catapult, exponential_lr, intrinsic_lr, stored

ROOT = Path(__file__).parent.parent
PATHS = chapters.chapter_paths(ROOT)


def test_every_file_of_the_contents_exists():
    names = re.findall(r"file:\s*(\S+)", (ROOT / "_toc.yml").read_text())
    missing = [
        name
        for name in names
        if not any((ROOT / name).with_suffix(end).exists() for end in (".ipynb", ".md"))
    ]
    assert not missing
    assert PATHS


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_chapter_is_in_canonical_form(path):
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    assert chapters.problems(notebook, chapters.first_lines(ROOT)) == []
    assert nbformat.writes(chapters.canonical(notebook)) + "\n" == text
    assert len(text) <= chapters.LARGEST


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_what_is_stored_was_made_in_the_default_profile(path):
    assert chapters.notebook_profile(path) in ("ci", "")  # empty: stored before profiles were


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_chapter_is_read_at_one_sitting(path):
    cells = nbformat.read(path, as_version=4).cells
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    assert words <= 2_600 and len(cells) <= 50


def test_nothing_is_told_twice():
    told = {}
    for path in PATHS:
        for cell in nbformat.read(path, as_version=4).cells:
            for part in cell.source.split("\n\n") if cell.cell_type == "markdown" else ():
                if len(part) > 80 or (part.startswith("## ") and path.stem == told.get(part)):
                    assert part not in told, f"{path.stem}, and {told[part]}: {part[:60]}"
                told[part] = path.stem


def test_the_stored_titles_of_pages_carry_number_and_title_of_the_chapter():
    stored = (ROOT / "tests" / "page_titles.txt").read_text()
    for path in PATHS:
        heading = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].removeprefix("# ")
        heading = heading.replace("'", "’")
        assert f"book/{path.stem}: {int(path.stem[:2])}. {heading} — normcore\n" in stored


def test_links_to_chapters_carry_their_numbers_and_the_readme_has_one_to_each():
    link = re.compile(r"\[(?:[Cc]hapter )?(\d+)\]\((?:book/|\.\./)?(\d\d)_\w+\.ipynb")
    pages = [ROOT / "README.md", *sorted((ROOT / "book").rglob("*.md")), *PATHS]
    found = {page.name: link.findall(page.read_text(encoding="utf-8")) for page in pages}
    wrong = {name: [each for each in links if int(each[0]) != int(each[1])] for name, links in found.items()}
    assert not any(wrong.values()), wrong
    assert {number for _, number in found["README.md"]} == {path.name[:2] for path in PATHS}


def test_all_chapters_share_one_set_up_cell():
    cells = {
        next(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
        for path in PATHS
    }
    assert len(cells) == 1


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_no_cell_installs_or_fetches(path):
    """Whoever owned the package's name on an index would run code on the reader's machine."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert not re.search(
                r"^\s*[!%]|subprocess|os\.system|urlopen|requests\.", cell.source, re.MULTILINE
            )


BOARD = json.loads((ROOT / "book" / "robustness.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_claim_keeps_its_margin_on_other_machines(path):
    """Measured by `make robust`; a claim that changed since has none."""
    checks = BOARD["chapters"][path.stem]
    fields = ("kind", "relation", "bound", "verdict")
    stored = {r.id: tuple(getattr(r, name) for name in fields) for r in chapters.notebook_records(path)}
    assert {id: tuple(check[name] for name in fields) for id, check in checks.items()} == stored
    executed = set(robust.PERTURBATIONS) - set(BOARD["missing"].get(path.stem, []))
    assert all(set(check["values"]) == executed for check in checks.values())
    assert {"seed 1", "seed 2", "kernels of 2008"} <= executed
    assert robust.weak(checks) == []


def test_margins_are_measured_under_eight_perturbations_and_the_page_tells_what_was_not_executed():
    assert len(robust.PERTURBATIONS) >= 8 and BOARD["perturbations"] == robust.PERTURBATIONS
    assert robust.summary(BOARD) in (ROOT / "book" / "reproducing.md").read_text()


def test_the_page_on_testing_counts_no_more_checks_than_there_are():
    kinds = [check["kind"] for checks in BOARD["chapters"].values() for check in checks.values()]
    told = "more than 700 of them, a third of which are controls"
    assert told in (ROOT / "book" / "how_it_is_tested.md").read_text()
    assert len(kinds) > 700 and 0.3 < kinds.count("control") / len(kinds) < 0.4


def test_every_row_of_a_paper_is_tested():
    rows = {row.id: row for rows in load_scoreboard(ROOT).values() for row in rows}
    assert [id for id, row in rows.items() if row.verdict == NOT_TESTED] == []


def test_every_directive_has_the_title_that_was_given_to_it():
    """A title that loses a letter looks like any other; so they are listed."""
    titles = [
        f"{path.stem}: {title}"
        for path in PATHS
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "markdown"
        for name, title, _ in directives(cell.source)
        if name.startswith("prf:") and title
    ]
    assert titles == (ROOT / "tests" / "titles.txt").read_text(encoding="utf-8").splitlines()


FENCE = re.compile(r"^(:::|```|:[a-z-]+:).*$", re.M)
DISPLAY = re.compile(r"\$\$.*\$\$( \([\w-]+\))?", re.S)


def torn_displays(text):
    """Paragraphs that hold a displayed formula and more: the page shows their words as mathematics."""
    paragraphs = re.split(r"\n\s*\n", FENCE.sub("\n", text))
    return [part for part in paragraphs if "$$" in part and not DISPLAY.fullmatch(part.strip())]


@pytest.mark.parametrize("path", [*PATHS, *sorted((ROOT / "book").rglob("*.md"))], ids=lambda path: path.stem)
def test_a_displayed_formula_is_a_paragraph(path):
    if path.suffix == ".md":
        texts = [path.read_text(encoding="utf-8")]
    else:
        texts = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"]
    assert [part for text in texts for part in torn_displays(text)] == []


def test_control_a_formula_beside_words_is_found():
    assert torn_displays("After\n$$ x $$\n\nsteps") and torn_displays("$$ x $$\nsteps")
    assert not torn_displays("After\n\n$$ x\n = y $$ (eq-x)\n\nsteps") and not torn_displays(
        ":::\n$$ x $$\n:::"
    )


def test_labels_are_given_once_in_the_book():
    labels = [
        option
        for path in PATHS
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "markdown"
        for *_, options in directives(cell.source)
        for option in options
        if option.startswith(":label:")
    ]
    assert len(labels) == len(set(labels)) > 40


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_chapter_makes_claims_and_prose_cites_only_those(path):
    notebook = nbformat.read(path, as_version=4)
    recorded = {record.id for record in chapters.notebook_records(path)}
    assert len(recorded) >= 8
    prose = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    cited = set(re.findall(r"`([EICX]\d+/[a-z0-9-]+)`", prose))
    assert cited <= recorded
    assert len(prose.split()) > 1200


def test_no_id_is_claimed_by_two_chapters():
    ids = [record.id for path in PATHS for record in chapters.notebook_records(path)]
    assert len(ids) == len(set(ids))


COMMANDS = [module.RUNS for module in (exponential_lr, intrinsic_lr, catapult)]


def test_every_data_file_is_that_of_a_command():
    expected = {runs.file(size).name for runs in COMMANDS for size in runs.settings if size != "tiny"}
    assert {path.name for path in (ROOT / "book" / "data").iterdir()} <= expected


@pytest.mark.parametrize(
    ("runs", "size"), [(runs, size) for runs in COMMANDS for size in runs.settings if size != "tiny"]
)
def test_stored_runs_have_the_settings_of_their_command_and_a_provenance(runs, size):
    found = stored.load(ROOT / runs.file(size))
    if found is None:
        pytest.skip(f"the {size} runs of {runs.name} have not been made")
    settings = json.loads(json.dumps(asdict(runs.settings[size])))
    assert {**found.settings, "dataset": ""} == {**settings, "dataset": ""}
    assert set(found.arms) <= set(runs.own_arms.get(size, runs.arms))
    for run in found.runs:
        assert set(run["provenance"]) == {"torch", "numpy", "python", "device", "source", "date"}
        assert run["diverged_at"] is None or run["diverged_at"] > 0
