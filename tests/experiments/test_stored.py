"""Long runs as data files."""

import json
import math
import multiprocessing
import os
import threading

import launch
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
    one = '{"arm": 1, "seed": 2}'
    for text in (
        '{"settings": {}, "ru',
        "[1, 2]",
        "{}",
        '{"settings": {}, "runs": null}',
        '{"settings": {}, "runs": [1]}',
        f'{{"settings": {{}}, "runs": [{one}]}}',
        '{"settings": {}, "runs": [], "more": 1}',
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"must be a file of stored runs, got runs.json"):
            stored.load(path)


def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path):
    path = tmp_path / "runs.json"
    stored.add_run(path, {"lr": 0.1}, arm="a", seed=0, records={"loss": [1.25, math.nan]}, diverged_at=1)
    data, before, harmless = path.read_bytes(), stored.load(path), 0
    for place in range(0, 8 * len(data), 5):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            after = stored.load(path)
        except ValueError:
            continue
        harmless += 1
        assert (after.settings, after.runs) == (before.settings, before.runs), place
    assert harmless < len(data) / 20  # a space that became a tab


def test_files_from_before_the_checksum_are_read_and_get_one(tmp_path):
    path = tmp_path / "runs.json"
    stored.add_run(path, {}, arm="a", seed=0, records={"loss": [1]})
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps(content))
    stored.add_run(path, {}, arm="a", seed=1, records={"loss": [2]})
    assert stored.load(path).seeds("a") == [0, 1] and "sha256" in json.loads(path.read_text())


def test_two_writers_wait_for_each_other(tmp_path):
    path, add = tmp_path / "runs.json", {"arm": "a", "seed": 0, "records": {}}
    with stored._alone_in(tmp_path):
        thread = threading.Thread(target=stored.add_run, args=(path, {}), kwargs=add)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive() and not path.exists()
    thread.join(launch.PATIENCE)
    assert stored.load(path).seeds("a") == [0]


def write(path, arm, begun):
    begun.set()
    for seed in range(15):
        stored.add_run(path, {}, arm=arm, seed=seed, records={"loss": [seed]})


@pytest.mark.slow
def test_two_commands_lose_no_run(tmp_path):
    """The other process is forked: it would take longer to import torch than to write."""
    path, context = tmp_path / "runs.json", multiprocessing.get_context("fork")
    begun = context.Event()
    writer = context.Process(target=write, args=(path, "a", begun))
    writer.start()
    try:
        assert begun.wait(launch.PATIENCE)
        write(path, "b", begun)
        writer.join(launch.PATIENCE)
        assert writer.exitcode == 0
    finally:
        writer.kill()
    found = stored.load(path)
    assert found.seeds("a") == found.seeds("b") == list(range(15))


def test_a_full_disk_leaves_the_runs_that_were_there(tmp_path, monkeypatch):
    path = tmp_path / "runs.json"
    stored.add_run(path, {}, arm="a", seed=0, records={"loss": [1]})

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            stored.add_run(path, {}, arm="a", seed=1, records={"loss": [1]})
    assert stored.load(path).seeds("a") == [0] and list(tmp_path.iterdir()) == [path]
    (tmp_path / ".runs.json.7.part").touch()  # as a kill in the middle leaves it
    stored.add_run(path, {}, arm="a", seed=1, records={"loss": [1]})  # and nobody is locked out
    assert stored.load(path).seeds("a") == [0, 1] and list(tmp_path.iterdir()) == [path]


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
