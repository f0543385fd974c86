"""Whose face is seen: OpenCV's real classes with toy networks, to which a bright square of a colour is a person."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from support.finished import finished_run
from support.runs import exit_message
from support.tolerances import ALIGNED_FACES, BY_HAND, close

from mace_pl.cli import erase_main
from mace_pl.commands.export import export_run
from mace_pl.evaluation.faces import OTHER, Faces

GREEN = (0, 255, 0)
SCORED = ["--model.steps", "2", "--data.seeds", "2", "--trainer.logger", "false", "--data.names", "[ship, dog, cat]"]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Both networks, and two images each of ship (red), dog (green) and cat (blue)."""
    from support.facenets import detector, image_of, recogniser  # skips where its packages are not installed

    for name, colour in {"ship": "red", "dog": GREEN, "cat": "blue"}.items():
        (tmp_path / "people" / name).mkdir(parents=True)
        for left in (8, 32):
            image_of((colour, left, 16, 8)).save(tmp_path / "people" / name / f"{left}.png")
    networks = {"detector": detector(tmp_path / "yunet.onnx"), "recogniser": recogniser(tmp_path / "sface.onnx")}
    return {"references": str(tmp_path / "people")} | {key: str(path) for key, path in networks.items()}


def test_the_largest_face_is_the_nearest_person_or_nobody_known(files: dict[str, str]) -> None:
    from support.facenets import image_of

    judge = Faces(**files, threshold=0.8)
    assert judge.names == ["cat", "dog", "ship", OTHER]
    close(judge.means_CD, torch.tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]]), BY_HAND)
    images = [
        image_of(("red", 8, 8, 8)),
        image_of(),  # nothing
        image_of(("red", 8, 8, 8), (GREEN, 32, 32, 16)),  # two, the second larger
        image_of(((255, 255, 255), 16, 16, 16)),  # a cosine of 0.58 to everybody
    ]
    found = judge(images)
    close(found.sum(1), torch.tensor([1.0, 0, 1, 1]), BY_HAND)
    assert [judge.names[row.argmax()] for row in found[[0, 2, 3]]] == ["ship", "dog", OTHER]
    assert [judge.names[row.argmax()] for row in Faces(**files, threshold=0.5)(images[:1])] == ["ship"]
    assert Faces(**files, threshold=0.5)(images)[3].argmax() < 3
    # by hand: cosines 0, 0, 1 and the threshold, times 20
    by_hand = torch.tensor([0.0, 0, 20, 16]).softmax(0)
    close(found[0], by_hand, ALIGNED_FACES)


def test_a_person_is_the_mean_of_the_references(files: dict[str, str]) -> None:
    from support.facenets import image_of

    image_of(("lime", 8, 8, 8)).save(Path(files["references"]) / "ship" / "9.png")  # two of three stay red
    mean = torch.tensor([2.0, 1, 0]) / 5**0.5
    close(Faces(**files).means_CD[2], mean, ALIGNED_FACES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1.0}, r"judge\.threshold=1\.0"),
        ({"face_threshold": 0.0}, r"judge\.face_threshold=0\.0"),
        ({"detector": "nowhere.onnx"}, r"judge\.detector=nowhere\.onnx is no file.*opencv_zoo"),
        ({"recogniser": "nowhere.onnx"}, r"judge\.recogniser=nowhere\.onnx is no file.*opencv_zoo"),
        ({"references": "nowhere"}, r"judge\.references=nowhere holds no folders"),
    ],
)
def test_bad_settings_are_refused(files: dict[str, str], change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Faces(**files | change)


def test_a_reference_without_a_face_is_named(files: dict[str, str]) -> None:
    from support.facenets import image_of

    image_of().save(Path(files["references"]) / "dog" / "black.png")
    with pytest.raises(ValueError, match=r"no face is found in .*black\.png"):
        Faces(**files)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r'OpenCV is not installed. Run pip install "mace-pl\[faces\]"'):
        Faces("anywhere")


def test_a_run_is_judged_by_faces(
    toy_pipeline: Path, toy_clip: Path, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run(tmp_path / "run", toy_pipeline)
    export_run(run=str(run), format="refined")
    args = ["test", "--model.pretrained", str(toy_pipeline), "--model.classifier", str(toy_clip), *SCORED]
    args += ["--model.runs", f"[{run}]", "--model.output", str(tmp_path / "s.json")]
    args += ["--model.judge.class_path", "mace_pl.evaluation.faces.Faces"]
    judge = [word for key, value in files.items() for word in (f"--model.judge.init_args.{key}", value)]
    erase_main([*args, *judge, "--model.judge.init_args.threshold", "0.9"])
    written = json.loads((tmp_path / "s.json").read_text())
    after = written["scores"]["run"]["after"]["top1"]
    assert written["settings"]["judge"] == "Faces" and 0 <= after["acc_s"] <= 1 and "h_c" in after
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert "H_c ↑" in page
    Path(files["detector"]).unlink()
    assert "judge.detector" in exit_message([*args, *judge, "--model.overwrite", "true"], capsys)
