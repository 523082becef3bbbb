from __future__ import annotations

import pytest

from openrlhf_ext.errors import DataError
from openrlhf_ext.track.reference_cache import ReferenceCache, answer_key, model_digest


def test_what_was_added_is_found_by_the_next_run(tmp_path):
    first = ReferenceCache(tmp_path / "cache", "m")
    assert first.missing(["a", "b", "a"]) == [0, 1]
    first.add({"a": -1.25, "b": 0.1 + 0.2})
    again = ReferenceCache(tmp_path / "cache", "m")
    assert (again["a"], again["b"]) == (-1.25, 0.1 + 0.2)
    assert again.missing(["b", "c"]) == [1]
    assert len(ReferenceCache(tmp_path / "cache", "other")) == 0


def test_a_line_that_was_cut_off_is_computed_again(tmp_path):
    cache = ReferenceCache(tmp_path, "m")
    cache.add({"a": -1.0})
    with cache.path.open("a") as file:
        file.write('["b", -2')
    again = ReferenceCache(tmp_path, "m")
    assert again.missing(["a", "b"]) == [1]
    again.add({"b": -3.0})
    assert ReferenceCache(tmp_path, "m")["b"] == -3.0


def test_another_file_of_that_name_is_refused(tmp_path):
    (tmp_path / "m.jsonl").write_text("reward: 3\n")
    with pytest.raises(DataError, match=r"not a cache of reference log-probs.*--ref.cache_dir"):
        ReferenceCache(tmp_path, "m")


def test_an_answer_is_known_by_its_tokens_and_where_it_begins():
    assert answer_key([1, 2, 3], 1) == answer_key((1, 2, 3), 1)
    assert len({answer_key([1, 2, 3], 1), answer_key([1, 2, 3], 2), answer_key([1, 2], 1), answer_key([12, 3], 1)}) == 4


def test_a_model_is_known_by_its_files_and_how_it_is_run(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    before = model_digest(tmp_path, "bf16")
    (tmp_path / "README.md").write_text("a note")
    assert model_digest(tmp_path, "bf16") == before != model_digest(tmp_path, "fp32")
    (tmp_path / "model.safetensors").write_bytes(b"abd")
    assert model_digest(tmp_path, "bf16") != before
