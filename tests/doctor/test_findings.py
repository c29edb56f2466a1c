"""Three renderers of the same findings: 80 columns, escaped, strict JSON."""

import json
import math

import pytest

from normcore.doctor.findings import GROUNDS, Diagnosis, Finding, say

LONG = "module." * 40 + "weight"
FINDINGS = (
    say("scale-free", f"all of <b>{LONG}</b> & more", shares={"alone": 1.0}),
    say("weight decay/group 0", "a penalty", weight_decay=0.1),
    say("weight decay/group 1", "nothing", weight_decay=0.0),
    say("run/group 0", "it overshoots", "warning", overshoot=math.inf, settled_at=None, changes=[1, 2]),
    say("curvature", "no edges", "note", curvature=math.nan),
)
PAGE = Diagnosis("SGD, 2 groups", FINDINGS)


def test_text():
    text = str(PAGE)
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[0] == "SGD, 2 groups" and text.endswith("Warnings: run/group 0")
    assert text.count("WEIGHT DECAY") == 1 and "! group 0: it overshoots" in text and "- no edges" in text
    for finding in FINDINGS:
        assert finding.tag in " ".join(text.split())
    assert str(Diagnosis("t", ())).endswith("Warnings: none")


def test_every_topic_has_a_source_and_an_assumption():
    for topic, (source, assumption) in GROUNDS.items():
        finding = say(f"{topic}/x", "text", number=1)
        assert isinstance(finding, Finding) and finding.value == {"number": 1} and finding.level == "ok"
        assert source and assumption and finding.tag == f"[{source}; assumes: {assumption}]"


def test_html_is_escaped():
    page = PAGE._repr_html_()
    assert "&lt;b&gt;" in page and "<b>module" not in page and page.count("<tr>") == len(FINDINGS)
    assert LONG in page and "Lewkowycz" in page


def test_json_is_strict():
    def refuse(word):
        raise AssertionError(word)

    data = json.loads(PAGE.to_json(), parse_constant=refuse)
    assert data == PAGE.as_dict() and data["warnings"] == ["run/group 0"] == PAGE.warnings
    assert data["findings"][3]["value"] == {"overshoot": None, "settled_at": None, "changes": [1, 2]}
    assert set(data["findings"][0]) == {"name", "text", "value", "source", "assumption", "level"}


def test_by_name():
    assert PAGE["weight decay/group 1"].text == "nothing"
    with pytest.raises(KeyError, match="weight decay/group 2"):
        PAGE["weight decay/group 2"]


@pytest.mark.parametrize("name", ["ratio_batch", "ratio_epochs"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_plan_refuses(name, value):
    with pytest.raises(ValueError, match=f"{name} must be finite and > 0, got {value!r}"):
        PAGE.plan(**{name: value})
