"""Docstrings as pages: formulas become mathematics, theorems and papers become links, types stay as they are written."""

import ast
import inspect
import re
import sys
import textwrap

GREEK = "alpha beta epsilon eta gamma kappa lambda rho theta zeta".split()
SUB = r"(?:_(?:\{[^}]*\}|\w))"
POWER = r"(?:\^(?:\([^()]*\)|-?\d+|[A-Z]\b))"
SYMBOL = re.compile(
    rf"\|\w~?{SUB}?\|{POWER}?"  # |w|, |w_t|^4
    rf"|(?<![\w.])(?:lr|wd|buf|momentum|{'|'.join(GREEK)}|[A-Za-z])"
    rf"(?=[~_^])~?{SUB}?{POWER}?(?![\w(])"  # theta~_t, x_{{t+1}}, alpha^(-2t-1)
    rf"|(?<![\w.])(?:{'|'.join(GREEK)})(?![\w(:.])"
)
SECTION = re.compile(r"(?:Args|Attributes|Example|Raises|Returns|Yields):$|Source:")
CHAPTERS = {
    "2.1": "02_weight_decay",
    "2.9": "03_momentum",
    "2.12": "04_texp",
    "2.13": "05_texp_plus_plus",
    "3.1": "07_either_is_fine",
}
"""Theorem of the first paper -> the chapter that proves it."""


def name(found) -> str:
    """A name of a formula in TeX: theta~_t, lr_t, weight_decay."""
    base, tilde, below = found.groups()
    if (
        below
        and len(base) > 1
        and base not in GREEK
        and below.isalpha()
        and len(below) > 1
    ):
        base, below = rf"{base}\_{below}", None
    if base in (*GREEK, "cos", "exp"):
        base = "\\" + base
    elif len(base) > 1:
        base = rf"\mathrm{{{base}}}"
    base = rf"\tilde{{{base}}}" if tilde else base
    below = (below or "").strip("{}")
    if below.isalpha() and len(below) > 1:
        below = rf"\mathrm{{{below}}}"
    return base + (f"_{{{below}}}" if below else "")


def tex(text: str) -> str:
    """An ASCII formula in TeX; what two blanks part stands on a line of its own."""
    words, colon, rest = text.strip().rstrip(":").partition(": ")
    if colon:
        return rf"\text{{{words}: }}\quad {tex(rest)}"
    text = re.sub(r"([A-Za-z]+)(~?)(?:_(\{[^}]*\}|\w+))?", name, words)
    text = re.sub(r"\^(?:\(([^()]*)\)|(-\d+))", r"^{\1\2}", text)
    text = re.sub(r"(?<=[\w})\]]) ?[*.](?=[\w\\(])", r"\\cdot ", text)
    text = re.sub(r"(?<=[\w})\]|]) (?=[\w\\(\[|])", r"\\,", text)
    return re.sub(r" {2,}", r" \\\\ ", text)


def display(lines: list[str]) -> list[str]:
    """An indented block of formulas as a display."""
    rows = r" \\ ".join(tex(line) for line in lines)
    if r"\\" in rows:
        rows = rf"\begin{{gathered}}{rows}\end{{gathered}}"
    return [".. math::", "", "   " + rows, ""]


def prose(line: str) -> str:
    """A line of text: symbols as mathematics, theorems and papers as links; what is code or names an argument stays."""
    parts = re.split(r"(`+[^`]*`+|^ +[\w, ]+:)", line)
    parts[::2] = [_prose(part) for part in parts[::2]]
    return "".join(parts)


def _prose(text: str) -> str:
    text = re.sub(r"(?<=\S)\*|\*(?=\S)", r"\\*", text)
    pieces = re.split(f"({SYMBOL.pattern})", text)
    pieces[::2] = [_links(piece.replace("|", r"\|")) for piece in pieces[::2]]
    pieces[1::2] = [rf"\ :math:`{tex(piece)}`\ " for piece in pieces[1::2]]
    return "".join(pieces)


def _links(text: str) -> str:
    text = re.sub(
        r"(?<=Theorem )\d\.\d+|(?<=Theorems )\d\.\d+ and \d\.\d+",
        lambda found: re.sub(r"\d\.\d+", _chapter, found[0]),
        text,
    )
    return re.sub(
        r"\b\d{4}\.\d{5}\b", r"`\g<0> <https://arxiv.org/abs/\g<0>>`__", text
    )


def _chapter(found) -> str:
    number = found[0]
    return (
        f":doc:`{number} </book/{CHAPTERS[number]}>`"
        if number in CHAPTERS
        else number
    )


def rewrite(lines: list[str]) -> list[str]:
    """A docstring, before napoleon reads it."""
    done, section, i = [], "", 0
    while i < len(lines):
        line = lines[i]
        if SECTION.match(line):
            section = line.split(":")[0]
        end = i
        while (
            not section and lines[end : end + 1] and lines[end].startswith("    ")
        ):
            end += 1
        if end > i and not lines[i - 1]:
            done += display(lines[i:end])
            i = end
            continue
        line = line.lstrip() if section == "Source" else line  # one paragraph
        done.append(line if section == "Example" else prose(line))
        i += 1
    return done


def as_written(obj) -> dict[str, str]:
    """The annotations of a function, or of the fields of the dataclass that it makes, as they stand in the source."""
    owner = getattr(obj, "__qualname__", "").removesuffix(".__init__")
    made = getattr(sys.modules.get(obj.__module__), owner, None)
    source = made if hasattr(made, "__dataclass_fields__") else obj
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(source))).body
    if isinstance(tree, ast.ClassDef):
        return {
            line.target.id: ast.unparse(line.annotation)
            for line in tree.body
            if isinstance(line, ast.AnnAssign)
        }
    spec = tree.args
    named = {
        one.arg: one.annotation
        for one in (
            *spec.posonlyargs,
            *spec.args,
            *spec.kwonlyargs,
            spec.vararg,
            spec.kwarg,
        )
        if one is not None
    }
    named["return"] = tree.returns
    return {key: ast.unparse(note) for key, note in named.items() if note}


def keep_types(app, obj, bound_method) -> None:
    """Show `Number`, not the union that it stands for."""
    if inspect.isfunction(obj) and obj.__module__.startswith("normcore"):
        obj.__annotations__ = as_written(obj)


def process(app, what, name, obj, options, lines) -> None:
    """Rewrite in place."""
    lines[:] = rewrite(lines)


def setup(app):
    """Register."""
    app.connect("autodoc-process-docstring", process, priority=100)
    app.connect("autodoc-before-process-signature", keep_types)
    return {"parallel_read_safe": True}
