"""What a user can mend is one line, or a UserError in Python; a fault of the program keeps its traceback."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.runs import config, exit_message

from mace_pl import erase
from mace_pl.cli import erase_main
from mace_pl.errors import UserError

BASE = ["--model.pretrained", "checkpoints/emoji"]
WRONG = [
    ({"model": {"lrr": 1e-3}}, "model.lrr does not exist. The nearest that exists is model.lr."),
    ({"model": {"refine": {"identiy": 1.0}}}, "The nearest that exists is model.refine.identity."),
    ({"data": {"segment": {"boxx": "all"}}}, "data.segment.boxx does not exist"),
    ({"data": {"concepts": [{"target": "ship", "anchr": "sky"}]}}, "The nearest that exists is anchor."),
    ({"data": {"templates": {"objct": ["a {}"]}}}, "The nearest that exists is object."),
    ({"trainer": {"max_epoch": 1}}, "The nearest that exists is trainer.max_epochs."),
    (
        {
            "trainer": {
                "callbacks": [
                    {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitr": "loss"}}
                ]
            }
        },
        "monitr does not exist in lightning.pytorch.callbacks.EarlyStopping. The nearest that exists is monitor.",
    ),
    ({"model": {"rank": "two"}}, "model.rank"),
    ({"data": {"segment": {"fallback": "both"}}}, "data.segment"),
    ({"seed_everything": -1}, "seed_everything=-1 must be"),
    ({"keep_every_n_steps": 0}, "keep_every_n_steps=0"),
]


def settings(folder: Path, pipeline: Path, change: dict[str, Any]) -> dict[str, Any]:
    """The settings of a small run with some that are wrong."""
    found: dict[str, Any] = yaml.safe_load(Path(config(folder, pipeline, "out")[2]).read_text())
    for key, value in change.items():
        found[key] = found.get(key, {}) | value if isinstance(value, dict) else value
    return found


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_bad_setting_is_a_user_error_in_python_and_one_line_of_the_command(
    tmp_path: Path, toy_pipeline: Path, change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = settings(tmp_path, toy_pipeline, change)
    with pytest.raises(UserError) as raised:
        erase(**wrong)
    assert message in str(raised.value)
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    with pytest.raises(SystemExit) as stop:
        erase_main(["fit", "--config", str(tmp_path / "wrong.yaml")])
    assert message in str(stop.value.code) and "\n" not in str(stop.value.code)
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "pictures").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "--modell.rank", "1"], "modell.rank does not exist. The nearest that exists is model.rank."),
        (["cache", "--data.sorces", "x"], "data.sorces does not exist. The nearest that exists is data.sources."),
        (["fuse", "--rum", "x"], "rum does not exist. The nearest that exists is run."),
        (["harden", "--run", "x", "--harden", "5"], "harden=5 is no group of settings. Give each by its name"),
        (["fit", *BASE, "--model.harden", "[1]"], "model.harden=[1] is no group of settings."),
        (["fit", *BASE, "--model.harden", "true"], "model.harden=true is no group of settings."),
        (["fuse", "--run", "x", "--weights", "ship=much"], "target=strength pairs"),
        (["export", "--format"], "--format"),
        (["fit", *BASE, "--model.method", "nosuch.Thing"], "model.method: there is no class nosuch.Thing."),
        (["fit", *BASE, "--model.method", "Uce"], "there is no class Uce. Choose from CURE, OCE"),
        (["fit", *BASE, "--trainer.callbacks", "nosuch.Callback"], "trainer.callbacks: there is no class nosuch.Call"),
        (["fit", "--ckpt_path", "last.ckpt"], "a run resumes by itself"),
        (["fit", "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_a_misspelt_option_names_the_nearest(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in exit_message(args, capsys)


def test_a_fault_of_the_program_keeps_its_traceback(
    tmp_path: Path, toy_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*args: object, **more: object) -> None:
        raise ValueError("of torch")

    monkeypatch.setattr(torch.linalg, "cholesky_ex", fault)
    with pytest.raises(ValueError, match="of torch") as raised:
        erase_main(config(tmp_path, toy_pipeline, "out"))
    assert not isinstance(raised.value, UserError)


@pytest.mark.parametrize(
    "form",
    [
        ["-c", "first.yaml", "-c", "second.yaml"],
        ["-csecond.yaml"],
        ["--config=second.yaml"],
        ["--config", "first.yaml", "--config=second.yaml"],
    ],
    ids=" ".join,
)
def test_any_form_of_config_names_the_output(
    tmp_path: Path,
    toy_pipeline: Path,
    form: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    content = settings(tmp_path, toy_pipeline, {})
    content.pop("output_dir")
    for name in ("first.yaml", "second.yaml"):
        Path(name).write_text(yaml.safe_dump(content))
    taken = Path("checkpoints/erased/second/edit.safetensors")
    taken.parent.mkdir(parents=True)
    taken.write_text("")
    assert f"output_dir: {taken.parent} exists" in exit_message(["fit", *form], capsys)


def test_the_callers_plots_stay_as_they_are(tmp_path: Path) -> None:
    code = (
        "import matplotlib; matplotlib.use('svg'); import mace_pl.cli; from pathlib import Path; "
        "from mace_pl.callbacks.report import write_losses; write_losses(Path('losses.png'), {'ship': [2.0, 1.0]}); "
        "from matplotlib import pyplot; print(matplotlib.get_backend().lower(), pyplot.get_fignums())"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); {code}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout.split("\n")[-2] == "svg []"
    assert (tmp_path / "losses.png").stat().st_size > 1000
