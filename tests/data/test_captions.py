"""Captions: counting, provenance, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mace_pl.data.caption_counts import CaptionStore
from mace_pl.data.captions import CaptionBatches, Captions


def coco(path: Path, captions: list[str]) -> str:
    path.write_text(json.dumps({"annotations": [{"caption": c} for c in captions]}, ensure_ascii=False), "utf-8")
    return str(path)


def test_equal_captions_are_counted_in_first_seen_order(tmp_path: Path) -> None:
    first = coco(tmp_path / "a.json", ["a ship", "a dog", "a ship"])
    second = coco(tmp_path / "b.json", ["Zürich", "a dog"])
    data = Captions(sources=[first, second], batch_size=2)
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [b["caption"] for b in batches] == [["a ship", "a dog"], ["Zürich"]]
    assert [b["count"].tolist() for b in batches] == [[2, 2], [1]]
    assert [b["index"].tolist() for b in batches] == [[0, 1], [2]]


def counted(data: Captions) -> dict[str, int]:
    return {caption: count for caption, count, _ in data.store.rows(by_length=False, start=0, step=1)}


@pytest.mark.parametrize("distinct", [1, 7, 1001])
@pytest.mark.parametrize("by_length", [False, True])
def test_every_caption_is_in_exactly_one_share(distinct: int, by_length: bool) -> None:
    store = CaptionStore()
    store.add(f"{'a ' * (i * 7 % 5)}ship {i}" for i in range(distinct))
    for ranks in (1, 2, 3, 5):
        for done in (0, 1, 4):
            seen: list[int] = []
            for rank in range(ranks):
                batches = CaptionBatches(store, 4, by_length, rank, ranks)
                whole = [index for batch in batches for index in batch["index"].tolist()]
                assert len(list(batches)) == len(batches) >= 1  # a rank without captions has an empty batch
                rest = CaptionBatches(store, 4, by_length, rank, ranks, done)
                assert [i for batch in rest for i in batch["index"].tolist()] == whole[done:]
                seen += whole
            assert sorted(seen) == list(range(distinct))


def test_short_captions_come_first_where_only_they_are_summed(tmp_path: Path) -> None:
    source = coco(tmp_path / "a.json", ["a dog, a cat and a ship", "art", "a ship"])
    data = Captions(sources=[source], tokens="caption", batch_size=2)
    data.setup("predict")
    assert [b["caption"] for b in data.predict_dataloader()] == [["art", "a ship"], ["a dog, a cat and a ship"]]


def test_captions_that_differ_in_a_letter_or_a_blank_stay_apart(tmp_path: Path) -> None:
    data = Captions(sources=[coco(tmp_path / "a.json", ["Ship", "ship", "ship ", "ship", "a\u0000b", "a"])])
    data.setup("predict")
    assert counted(data) == {"Ship": 1, "ship": 2, "ship ": 1, "a\u0000b": 1, "a": 1}


def test_each_source_is_recorded_with_its_hash(tmp_path: Path) -> None:
    source = coco(tmp_path / "a.json", ["a ship", "a dog"])
    data = Captions(sources=[source], names=["cat"], templates=["a {}", "{}"])
    data.setup("predict")
    file, names = data.provenance
    assert file["source"] == f"{tmp_path.name}/a.json"  # without the machine's folders above it
    assert file["sha256"] == hashlib.sha256(Path(source).read_bytes()).hexdigest()
    assert (file["captions"], names["captions"]) == (2, 2)
    assert names["sha256"] == hashlib.sha256(b"a cat\ncat").hexdigest()


def test_names_times_templates() -> None:
    data = Captions(names=["elf", "guard"], templates=["a photo of {}", "{} smiling"])
    data.setup("predict")
    assert list(counted(data)) == ["a photo of elf", "elf smiling", "a photo of guard", "guard smiling"]


def test_limit_takes_the_first_captions(tmp_path: Path) -> None:
    data = Captions(sources=[coco(tmp_path / "a.json", ["x", "y", "x", "z"])], limit=3)
    data.setup("predict")
    assert counted(data) == {"x": 2, "y": 1}
    assert [(p["captions"], p["limit"]) for p in data.provenance] == [(3, 3)]


def test_a_limit_hashes_the_whole_file_and_records_only_what_was_used(tmp_path: Path) -> None:
    first, second = coco(tmp_path / "a.json", ["x", "y", "z"]), coco(tmp_path / "b.json", ["v"])
    data = Captions(sources=[first, second], limit=2)
    data.setup("predict")
    assert [p["source"] for p in data.provenance] == [f"{tmp_path.name}/a.json"]
    assert data.provenance[0]["sha256"] == hashlib.sha256(Path(first).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no JSON"),
        (b"[1, 2]", "no list 'annotations'"),
        (b'{"annotations": {"caption": "x"}}', "no list 'annotations'"),
        (b'{"annotations": [{"caption": "x"}, {"id": 3}]}', "annotation 1 has no text 'caption'"),
        (b'{"annotations": ["x"]}', "annotation 0 has no text 'caption'"),
        (b'{"annotations": [{"caption": 7}]}', "annotation 0 has no text 'caption'"),
        (b'{"annotations": [{"caption": " \\n"}]}', "annotation 0 has an empty text"),
        ('{"annotations": [{"caption": "Zürich"}]}'.encode("latin-1"), "not UTF-8"),
        (b'{"annotations": []}', "no caption at all"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Captions(sources=[str(path)]).setup("predict")
    assert "bad.json" in str(caught.value)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for source in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ValueError, match="cannot be read"):
            Captions(sources=[str(source)]).setup("predict")


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        (["ship", " "], ["a {}"], "names: ' ' is empty"),
        (["ship"], None, r"templates=\[\]"),
        (["ship"], ["a photo"], "exactly once"),
        (["ship"], ["{} and {}"], "exactly once"),
    ],
)
def test_bad_names_and_templates_are_refused(names: list[str], templates: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Captions(names=names, templates=templates).setup("predict")


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="both empty"):
        Captions()
    with pytest.raises(ValueError, match="needs names"):
        Captions(sources=["a.json"], templates=["a {}"])
    with pytest.raises(ValueError, match="batch_size=0"):
        Captions(sources=["a.json"], batch_size=0)
    with pytest.raises(ValueError, match="limit=0"):
        Captions(sources=["a.json"], limit=0)
    with pytest.raises(ValueError, match="tokens='some'"):
        Captions(sources=["a.json"], tokens="some")  # type: ignore[arg-type]


def test_shipped_captions_are_readable() -> None:
    data = Captions(sources=["mace_pl/pretraining/emoji/captions.json"])
    data.setup("predict")
    assert data.store.total == 3000
