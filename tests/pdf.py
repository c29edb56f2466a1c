"""The whole book as one PDF, each page printed by headless Chromium: `make pdf`.

python tests/pdf.py _build/html    # writes _build/normcore.pdf
"""

import base64
import html
import io
import json
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from pages import BROWSER, Browser
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, DictionaryObject, NameObject

CONTENTS = Path(__file__).parent.parent / "_toc.yml"
PAPER = {"paperWidth": 8.27, "paperHeight": 11.69, "marginTop": 0.6, "marginBottom": 0.7}
"""A4, in inches."""

FOOT = '<p style="font:8px sans-serif;width:100%;text-align:center">{} · <span class="pageNumber"></span></p>'

NOTE = (
    "On paper proofs, solutions and verdicts are unfolded. The code that draws the figures and states the checks is left "
    "out: it stands folded in the pages, and in the notebooks of the folder <code>book</code>."
)
"""Under the title of the first page."""


def reading_order(contents):
    """The names of the pages of a table of contents, from the front page on."""
    yield contents["root"]
    entries = [entry for part in contents["parts"] for entry in part["chapters"]]
    for entry in entries:
        yield from [one["file"] for one in (entry, *entry.get("sections", []))]


def printed(browser, path, note=""):
    """A page on paper, a note under its heading, and its title."""
    browser.open(path)
    browser.value(
        f"document.querySelector('article h1').insertAdjacentHTML('afterend', {json.dumps(note and f'<p>{note}</p>')})"
    )
    title = browser.value("document.title").split(" — ")[0]
    foot = dict(
        displayHeaderFooter=True, headerTemplate="<i></i>", footerTemplate=FOOT.format(html.escape(title))
    )
    data = browser.call("Page.printToPDF", printBackground=True, **PAPER, **foot)["data"]
    return PdfReader(io.BytesIO(base64.b64decode(data))), title


def pin(sheets):
    """Links within a page lead to a spot, no longer to its name: pages share names."""
    spots = sheets.named_destinations
    for sheet in sheets.pages:
        for link in sheet.get("/Annots", []):
            name = link.get_object().get("/Dest")
            if name in spots:
                link.get_object()[NameObject("/Dest")] = spots[name].dest_array


def lead_inside(writer, root, starts):
    """Links to other files lead to the first sheet of that page; what is not in the book is no link."""
    for sheet in writer.pages:
        links = [one.get_object() for one in sheet.get("/Annots", [])]
        kept = ArrayObject()
        for link in links:
            address = urlsplit(str(link.get("/A", {}).get("/URI", "")))
            if address.scheme == "file":
                name = Path(unquote(address.path)).relative_to(root).with_suffix("").as_posix()
                if name not in starts:
                    continue
                target = writer.pages[starts[name]].indirect_reference
                link[NameObject("/A")] = DictionaryObject(
                    {
                        NameObject("/S"): NameObject("/GoTo"),
                        NameObject("/D"): ArrayObject([target, NameObject("/Fit")]),
                    }
                )
            kept.append(writer._add_object(link))
        sheet[NameObject("/Annots")] = kept


def bind(root, names, target):
    """Print pages in order into one file, with bookmarks; returns the number of sheets."""
    writer, starts = PdfWriter(), {}
    with Browser() as browser:
        browser.dress(1280, "light", "print")
        for name in names:
            sheets, title = printed(browser, root / f"{name}.html", "" if starts else NOTE)
            starts[name] = len(writer.pages)
            pin(sheets)
            writer.append(sheets, outline_item=title)
    lead_inside(writer, root, starts)
    writer.compress_identical_objects()
    writer.write(target)
    return len(writer.pages)


if __name__ == "__main__":
    if BROWSER is None:
        sys.exit("make pdf: it needs chromium or google-chrome")
    book = Path(sys.argv[1]).resolve()
    wanted = sys.argv[2:] or reading_order(yaml.safe_load(CONTENTS.read_text(encoding="utf-8")))
    print(f"{bind(book, wanted, book.parent / 'normcore.pdf')} sheets: {book.parent / 'normcore.pdf'}")
