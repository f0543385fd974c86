"""Files of captions: every format, packed or not, read as a stream; and what is refused."""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import json
import subprocess
import sys
import zipfile
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from mace_pl.data.caption_files import CaptionSource

CAPTIONS = ["a ship", 'a "dog", by Zürich', "a ship", "  art\t"]
ROOT = Path(__file__).resolve().parents[2]


def coco() -> str:
    """As the original: other lists before and behind, images among them."""
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)]
    annotations = [{"image_id": 1, "id": i, "caption": c} for i, c in enumerate(CAPTIONS)]
    info = {"year": 2014, "annotations": ["of another level"]}
    return json.dumps({"info": info, "images": images, "annotations": annotations, "licenses": []}, ensure_ascii=False)


def table() -> str:
    out = StringIO()
    csv.writer(out).writerows([["id", "text"], *enumerate(CAPTIONS)])
    return out.getvalue()


FILES = {
    "a.json": coco(),
    "a.txt": "\n".join(CAPTIONS) + "\n",
    "a.csv": table(),
    "a.jsonl": "".join(json.dumps({"text": c}) + "\n" for c in CAPTIONS),
}


def read(path: Path | str, column: str = "text", member: str | None = None) -> list[str]:
    return list(CaptionSource(str(path), column, member).captions())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_every_format(tmp_path: Path, name: str, packed: bool) -> None:
    raw = FILES[name].encode()
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(raw) if packed else raw)
    source = CaptionSource(str(path), "text")
    assert list(source.captions()) == CAPTIONS
    assert source.sha256 == hashlib.sha256(raw).hexdigest()  # of the content, so that packed and plain files overlap
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + raw) if packed else b"\xef\xbb\xbf" + raw)
    assert read(path) == CAPTIONS  # a byte-order mark is no text


def test_parquet(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"id": range(4), "text": CAPTIONS}), path)
    assert read(path) == CAPTIONS
    (tmp_path / "b.parquet.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert read(tmp_path / "b.parquet.gz") == CAPTIONS
    with pytest.raises(
        ValueError, match=r"no column 'caption', its columns are id, text\. Name one with --data\.column"
    ):
        read(path, "caption")
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="no readable Parquet file"):
        read(path)


def test_parquet_names_the_package_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as where it is not installed
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r'pip install "mace-pl\[parquet\]"'):
        read(path)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """As the official one: captions of two sets among others, in a folder."""
    path = tmp_path / "annotations.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("annotations/", "")
        file.writestr("annotations/captions_train2014.json", coco())
        file.writestr("annotations/captions_val2014.json", json.dumps({"annotations": [{"caption": "val"}]}))
        file.writestr("annotations/instances_val2014.json", "{}")
    return path


def test_a_file_in_a_zip(archive: Path) -> None:
    assert read(f"{archive}:captions_val2014.json") == ["val"]
    assert read(f"{archive}:annotations/captions_train2014.json") == CAPTIONS
    assert read(archive, member="captions_val2014.json") == ["val"]
    source = CaptionSource(f"{archive}:captions_train2014.json")
    list(source.captions())
    assert source.sha256 == hashlib.sha256(coco().encode()).hexdigest()
    with pytest.raises(ValueError, match=r"holds 2 files of captions; it has .*captions_val2014\.json.* Name one"):
        read(archive)
    with pytest.raises(ValueError, match=r"holds no captions_test\.json; it has "):
        read(f"{archive}:captions_test.json")


def test_the_only_captions_file_in_a_zip_is_found(tmp_path: Path) -> None:
    for names in (["x/captions_val.json", "x/instances.json"], ["mine.json"]):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
            for name in names:
                file.writestr(name, "{}" if "instances" in name else coco())
        assert read(tmp_path / "a.zip") == CAPTIONS
    with zipfile.ZipFile(tmp_path / "a.zip", "w"):
        pass
    with pytest.raises(ValueError, match="holds 0 files of captions; it has nothing"):
        read(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"annotations": [{"caption": "x"}], "info": }', "is no JSON"),
        ("a.json", b'{"annotations": [{"caption": "x"}]} more', "is no JSON"),
        ("a.json", b'{"annotations": [{"caption": "x"} {"caption": "y"}]}', "is no JSON"),
        ("a.json", b'{"annotations": [{"caption": "x"}, {"capt', "is no JSON"),
        ("a.json", b'{"images": []}', "no list 'annotations'"),
        ("a.json", b"3", "no list 'annotations'"),
        ("a.json", b'{"annotations": [{"caption": "x"}, {"caption": "\\ud800"}]}', "annotation 1 .* no Unicode text"),
        ("a.txt", b"a\n\nb\n", "line 2 has an empty text"),
        ("a.txt", "Zürich".encode("latin-1"), "not UTF-8"),
        ("a.txt", "a ship".encode("utf-16"), "not UTF-8"),
        ("a.csv", b"id,text\n1,a\n2, \n", "line 3 has an empty text"),
        ("a.csv", b"id,text\n1\n", "line 2 has other fields"),
        ("a.csv", b"id,text\n1,a ship, at sea\n", "line 2 has other fields"),
        ("a.csv", b"id;text\n1;a\n", "has semicolons between its fields"),
        ("a.CSV", b"id\ttext\n1\ta\n", "has tabs between its fields"),
        ("a.csv", b"text,id,text\na,1,b\n", "has two columns 'text'"),
        ("a.csv", b"id,caption\n1,a\n", "no column 'text', its columns are id, caption"),
        ("a.csv", b"", "no column 'text', its columns are none"),
        ("a.csv", b'text\n"a" b\n', "is no CSV"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "line 2 has no text 'text'"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', "line 2 is no JSON object"),
        ("a.jsonl", b'{"text": "a"}\n\n', "line 2 is no JSON"),
        ("a.json.gz", b"plain", "cannot be read"),
        ("a.txt.gz", gzip.compress(b"a ship\n" * 9, mtime=0)[:-9], "cannot be read"),
        ("a.zip", b"plain", "cannot be read"),
        ("a.docx", b"x", r"ends with '\.docx'\. Give one of \.json, \.txt"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_captions_are_the_same_wherever_the_stream_is_cut(tmp_path: Path, indent: int | None, mark: bytes) -> None:
    """Lists of other names, escapes and several bytes a character, over many blocks of the reader."""
    captions = [f'a \\ " é 🚢 {"]" * (i % 7)} {i}' for i in range(9_000)]
    rows: list[Any] = [{"id": i, "more": [1, {"caption": "x"}], "caption": c} for i, c in enumerate(captions)]
    content = {"before": 12.5, "images": [1, [2], "]", {"annotations": [3]}], "annotations": rows, "behind": None}
    text = json.dumps(content, indent=indent, ensure_ascii=indent is None)
    path = tmp_path / "a.json"
    path.write_bytes(mark + text.encode())
    assert len(text) > 4 * 65_536
    assert list(CaptionSource(str(path)).captions()) == captions


PEAK = """
import sys
from mace_pl.data.caption_counts import CaptionStore
from mace_pl.data.caption_files import CaptionSource
store = CaptionStore()
store.add(CaptionSource(sys.argv[1]).captions())
assert sum(1 for _ in store.rows(True, 0, 1)) == store.total == int(sys.argv[2])
# not ru_maxrss, which a process inherits from the one that started it
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("ending", [".json.gz", ".csv"])
def test_memory_is_flat_in_the_number_of_captions(tmp_path: Path, ending: str) -> None:
    peaks = []
    for number in (3_000, 30_000, 90_000):
        captions = [f"a photo of ship number {i} on the water beside the harbour" for i in range(number)]
        path = tmp_path / f"{number}{ending}"
        if ending == ".csv":
            path.write_text("\n".join(["caption", *captions]), "utf-8")
        else:
            path.write_bytes(gzip.compress(json.dumps({"annotations": [{"caption": c} for c in captions]}).encode(), 1))
        command = [sys.executable, "-c", PEAK, str(path), str(number)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    # the captions alone are 1.5 MB more, then 3.5 MB more; SQLite may hold half a MB of pages, and again while it sorts
    assert max(peaks) - peaks[0] < 2_000, peaks
