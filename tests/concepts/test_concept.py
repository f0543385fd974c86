from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from mace_pl.concepts.concept import AUTO, read_concepts, read_templates
from mace_pl.concepts.tokens import aligned_positions, attended_positions, target_span


@pytest.fixture(scope="module")
def tokenizer(toy_pipeline: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(toy_pipeline / "tokenizer")


def test_tokens_around_the_target_coexist_whatever_its_length(tokenizer: CLIPTokenizer) -> None:
    for target, anchor in (("ship", "airplane"), ("airplane", "ship"), ("ship", "dog")):
        left, right = f"a photo of a {target} in the sky", f"a photo of a {anchor} in the sky"
        mine, theirs = aligned_positions(tokenizer, left, right)
        ids = [tokenizer(p, padding="max_length", max_length=77).input_ids for p in (left, right)]
        assert len(mine) == len(theirs) == len(set(mine))
        assert [ids[0][i] for i in mine] == [ids[1][i] for i in theirs]
        start, stop = target_span(tokenizer, "a photo of a {} in the sky", target)
        assert not set(range(start, stop)) & set(mine)
        assert tokenizer.decode(ids[0][start:stop]).strip() == target


def test_the_loss_looks_at_the_target_and_what_follows_the_end(tokenizer: CLIPTokenizer) -> None:
    seen = attended_positions(tokenizer, "a photo of a {} in the sky", "ship")
    assert [i for i, s in enumerate(seen) if s] == [5, *range(9, 77)]
    assert sum(attended_positions(tokenizer, "a photo of a {} in the sky", "ship", padding=False)) == 1


def test_a_target_beyond_the_tokenizers_length_is_refused(tokenizer: CLIPTokenizer) -> None:
    with pytest.raises(ValueError, match="does not show the target 'ship'"):
        target_span(tokenizer, "a " * 80 + "{}", "ship")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty"),
        ([{"target": "ship", "anchor": "sky", "kind": "smell"}], "kind='smell'"),
        ([{"target": "ship", "anchor": "sky"}, {"target": "Ship", "anchor": "sky"}], "twice"),
        ([{"anchor": "sky"}], "needs a target"),
        ([{"target": "ship", "anchor": " "}], "anchor is empty"),
        ("nowhere.csv", "is no file"),
        (["ship", "[ship, 1984]"], "holds what is no text"),  # as the parser gives a list with a number
    ],
)
def test_bad_concepts_are_refused(rows: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_concepts(rows)  # type: ignore[arg-type]


def test_a_name_in_brackets_is_a_name() -> None:
    given = ["[/red]", "[red]bold[/red]", "[ship]"]
    assert [concept.target for concept in read_concepts(given)] == given


def test_an_anchor_that_is_not_named_is_left_to_the_run_and_none_is_none(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("target,kind\nship,object\n")
    unnamed = [read_concepts(given)[0].anchor for given in ([{"target": "ship"}], str(tmp_path / "c.csv"))]
    assert unnamed == [AUTO, AUTO]
    assert [read_concepts([{"target": "ship", "anchor": none}])[0].anchor for none in ("", None)] == ["", ""]


def test_concepts_come_from_csv_and_yaml(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("target,anchor,kind,images\nship,sky,object,\nvan gogh,art,style,\n")
    (tmp_path / "c.yaml").write_text("- {target: ship, anchor: sky}\n- {target: van gogh, anchor: art, kind: style}\n")
    assert read_concepts(str(tmp_path / "c.csv")) == read_concepts(str(tmp_path / "c.yaml"))


def test_templates_must_show_the_target(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exactly once"):
        read_templates(["a photo"], "object")
    for kind in ("object", "person", "style"):
        assert len(set(read_templates(None, kind))) >= 30
        assert all(template.count("{}") == 1 for template in read_templates(None, kind))
