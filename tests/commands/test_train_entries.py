"""What is shown of entries that are trained, and what that leaves for the next change."""

from pathlib import Path

from support.runs import CONCEPTS, config

from mace_pl.cli import erase_main
from mace_pl.commands.library import add_concepts, replace_concepts

DOG = {"target": "dog", "anchor": "sky", "kind": "object"}


def test_what_is_shown_of_a_new_entry_is_chosen(toy_pipeline: Path, tmp_path: Path) -> None:
    """The images of the original model are there for the next change; of the edited one none is left."""
    args = config(tmp_path, toy_pipeline, "run", CONCEPTS[:1])
    erase_main([*args, "--save_pipeline", "false", "--report_seeds", "0"])
    stored, run = tmp_path / "pictures" / ".originals", tmp_path / "run"
    assert not stored.exists()
    add_concepts(str(run), [DOG], kept=["cat"], report_seeds=2)
    images = set(stored.iterdir())
    assert len(images) == 2 * 2
    replace_concepts(str(run), [{**DOG, "anchor": "art"}], kept=[], report_seeds=3)
    assert len(set(stored.iterdir()) - images) == 1  # the dog, by the third seed
    assert not list(run.rglob("before_after.png"))
