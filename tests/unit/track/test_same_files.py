"""Files that should be the same on all machines: told apart by names and sizes, and said in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from openrlhf_ext.errors import DataError
from openrlhf_ext.track.same_files import Need, check_same, content_marks


def mark(path: Path) -> str | None:
    return content_marks([str(path)])[str(path)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def copied(model: Path, name: str) -> Path:
    other = model.parent / name
    other.mkdir()
    for file in model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    return other


def test_a_copy_has_the_same_mark_wherever_it_is(model: Path):
    copy = copied(model, "copy")
    assert mark(copy) == mark(model) is not None
    (copy / ".cache").mkdir()
    (copy / ".cache" / "lock").write_text("of a download")
    (copy / ".gitattributes").write_text("hidden")
    assert mark(copy) == mark(model)
    (model.parent / "link").symlink_to(model)
    assert mark(model.parent / "link") == mark(model)


@pytest.mark.parametrize("change", ["longer", "renamed", "gone", "more", "below"])
def test_other_files_have_another(model: Path, change: str):
    other = copied(model, "other")
    if change == "longer":
        (other / "model.safetensors").write_bytes(b"weights and more")
    elif change == "renamed":
        (other / "config.json").rename(other / "configs.json")
    elif change == "gone":
        (other / "config.json").unlink()
    elif change == "more":
        (other / "tokenizer.json").write_text("{}")
    else:
        (other / "below").mkdir()
        (other / "below" / "rows").write_text("{}")
    assert mark(other) != mark(model)


def test_a_file_and_nothing(model: Path):
    assert mark(model / "config.json") not in (None, mark(model / "model.safetensors"))
    assert mark(model / "nowhere") is None


HERE = {"/m": "1", "/a": "2"}


def test_needs_that_are_met_everywhere_are_no_error():
    needs = [Need("/m", "policy", ("node1", "node2")), Need("/a", "engines", ("node2",))]
    check_same(needs, {"node1": HERE, "node2": dict(HERE)}, here="node1")
    check_same(needs[:1], {"node1": HERE, "node2": {"/m": "1", "/a": None}}, here="node1")  # nobody reads /a there


def test_a_node_without_the_path_is_named():
    with pytest.raises(DataError) as raised:
        check_same([Need("/m", "policy", ("node1", "node2"))], {"node1": HERE, "node2": {"/m": None}}, here="node1")
    assert str(raised.value) == (
        "node2 has no /m, which is read there by the policy: put it on storage that all nodes share, or copy it to the "
        "same path on each of them."
    )


def test_a_node_with_other_files_is_named():
    with pytest.raises(DataError) as raised:
        check_same([Need("/m", "engines", ("node2",))], {"node1": HERE, "node2": {"/m": "3"}}, here="node1")
    assert str(raised.value) == (
        "/m is read by the engines on node2 and holds other files there than on node1 (names or sizes differ): copy it "
        "there again, or put it on storage that all nodes share."
    )
