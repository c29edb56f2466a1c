"""Long runs as data files."""

import json
import math

import numpy as np
import pytest

from normcore.experiments import stored

SETTINGS = {"depth": 8, "milestones": (1, 2), "lr": 0.1}


def test_what_was_put_in_comes_out(tmp_path):
    path = tmp_path / "new" / "runs.json"
    for seed in (0, 1):
        stored.add_run(path, SETTINGS, arm="a", seed=seed, records={"loss": [1 / 3, seed]})
    stored.add_run(path, SETTINGS, arm="b", seed=5, records={"loss": np.ones((2, 1))}, diverged_at=7)
    found = stored.load(path)
    assert found.settings == {"depth": 8, "milestones": [1, 2], "lr": 0.1}
    assert found.arms == ["a", "b"] and found.seeds("a") == [0, 1] and found.seeds("b") == [5]
    np.testing.assert_array_equal(found.records("a", "loss"), [[0.3333333, 0], [0.3333333, 1]])
    assert found.runs[2]["diverged_at"] == 7 and found.runs[0]["diverged_at"] is None
    assert [p.name for p in path.parent.iterdir()] == ["runs.json"]  # no scratch file is left


def test_what_is_not_finite_is_null_and_comes_back_as_nan(tmp_path):
    path = tmp_path / "runs.json"
    stored.add_run(path, {}, arm="a", seed=0, records={"angle": [math.nan, 0.5, math.inf]})
    assert json.loads(path.read_text())["runs"][0]["records"]["angle"] == [None, 0.5, None]
    np.testing.assert_array_equal(stored.load(path).records("a", "angle"), [[np.nan, 0.5, np.nan]])


def test_a_shorter_run_is_filled_up_with_nan(tmp_path):
    path = tmp_path / "runs.json"
    stored.add_run(path, {}, arm="a", seed=0, records={"loss": [1, 2, 3]})
    stored.add_run(path, {}, arm="a", seed=1, records={"loss": [4]}, diverged_at=1)
    np.testing.assert_array_equal(stored.load(path).records("a", "loss"), [[1, 2, 3], [4, np.nan, np.nan]])
    assert math.isnan(stored.load(path).final("a", "loss")[0])


def test_the_same_arm_and_seed_are_replaced_others_kept(tmp_path):
    path = tmp_path / "runs.json"
    for value, seed in ((1, 0), (2, 1), (3, 0)):
        stored.add_run(path, SETTINGS, arm="a", seed=seed, records={"loss": [value]})
    found = stored.load(path)
    assert found.seeds("a") == [1, 0]
    np.testing.assert_array_equal(found.records("a", "loss"), [[2], [3]])


def test_other_settings_are_refused_and_change_nothing(tmp_path):
    path = tmp_path / "runs.json"
    stored.add_run(path, SETTINGS, arm="a", seed=0, records={})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"must be those of runs.json, got others for \['depth', 'lr'\]"):
        stored.add_run(path, {**SETTINGS, "lr": 0.2, "depth": 14}, arm="a", seed=1, records={})
    with pytest.raises(ValueError, match=r"others for \['new'\]"):
        stored.add_run(path, {**SETTINGS, "new": 1}, arm="a", seed=1, records={})
    assert path.read_bytes() == before


def test_mean_and_standard_error(tmp_path):
    path, last = tmp_path / "runs.json", np.array([1.0, 2.0, 6.0])
    for seed, value in enumerate(last):
        stored.add_run(path, {}, arm="a", seed=seed, records={"loss": [9, value]})
    stored.add_run(path, {}, arm="alone", seed=0, records={"loss": [9, 4]})
    mean, se, n = stored.load(path).final("a", "loss")
    assert mean == 3 and n == 3
    assert se == pytest.approx(math.sqrt(7 / 3))  # variance (4 + 1 + 9) / 2, divided by 3
    mean, se, n = stored.load(path).final("alone", "loss")
    assert (mean, n) == (4, 1) and math.isnan(se)


def test_nothing_stored_is_none_and_damage_is_an_error(tmp_path):
    path = tmp_path / "runs.json"
    assert stored.load(path) is None
    for text in ('{"settings": {}, "ru', "[1, 2]", "{}"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"must be a file of stored runs, got runs.json"):
            stored.load(path)


def test_unknown_names(tmp_path):
    path = tmp_path / "runs.json"
    stored.add_run(path, {}, arm="a", seed=0, records={"loss": [1]})
    with pytest.raises(KeyError, match=r"no arm named 'b'; the file has \['a'\]"):
        stored.load(path).records("b", "loss")
    with pytest.raises(KeyError, match="accuracy"):
        stored.load(path).records("a", "accuracy")


def test_where_a_run_comes_from(tmp_path):
    path = tmp_path / "runs.json"
    stored.add_run(path, SETTINGS, arm="a", seed=0, records={})
    found, now = stored.load(path), stored.provenance("cpu")
    assert found.runs[0]["provenance"] == {**now, "date": found.provenance("date")}
    text = repr(found)
    for part in ("depth=8", "a x1", f"torch: {now['torch']}", f"source: {stored.source_hash()}"):
        assert part in text


def test_the_fingerprint_sees_contents_and_names_and_nothing_else(tmp_path):
    def fingerprint():
        stored.source_hash.cache_clear()
        return stored.source_hash(tmp_path)

    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.py").write_bytes(b"x = 1\n")
    first = fingerprint()
    (tmp_path / "deep" / "a.txt").write_text("no source")
    (tmp_path / "deep" / "a.py").write_bytes(b"x = 1\r\n")
    assert fingerprint() == first
    (tmp_path / "deep" / "a.py").write_bytes(b"x = 2\n")
    changed = fingerprint()
    (tmp_path / "deep" / "a.py").rename(tmp_path / "deep" / "b.py")
    assert len({first, changed, fingerprint()}) == 3
    stored.source_hash.cache_clear()
