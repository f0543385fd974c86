"""Names that differ as strings but not as tokens, and textual inversions of several vectors."""

import unicodedata
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from rich.table import Table
from support.tolerances import FLOAT32_PASS, close

from mace_pl.concepts.concept import Concept, read_concepts, read_names
from mace_pl.concepts.names import clean_name
from mace_pl.concepts.preservation import names_that_stay
from mace_pl.concepts.tokens import target_span
from mace_pl.files.markdown import markdown_table
from mace_pl.files.screen import screen
from mace_pl.models.text_encoding import encode_prompts, name_tokens, names_beside, spelled_as


@pytest.fixture(scope="module")
def pipeline(toy_pipeline: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)


@pytest.mark.parametrize("given", ["ship ", " ship", "\ufeffship", "ship\u200b", "ship\n", "\u2066ship\u2069"])
def test_a_name_is_taken_as_it_is_read_and_that_is_said(given: str) -> None:
    with pytest.warns(UserWarning, match="is taken as 'ship'"):
        assert Concept(given, "sky").target == "ship"
    with pytest.warns(UserWarning, match=r"kept: .* is taken as 'ship'"):
        assert read_names(["ship", given], "kept") == ["ship"]


def test_composition_and_blanks_between_words_are_one() -> None:
    with pytest.warns(UserWarning):
        assert clean_name(unicodedata.normalize("NFD", "Beyoncé  Knowles"), "x") == "Beyoncé Knowles"
    assert clean_name("👩‍🚀", "x") == "👩‍🚀"  # a joiner of emoji stays


@pytest.mark.parametrize("given", [1984, False, None, 7.0, "a\0b", "\ud800"])
def test_what_is_no_text_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match="data.concepts: target"):
        read_concepts([{"target": given, "anchor": "sky"}])


def test_numbers_and_truth_values_of_files_are_texts(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("- {target: 1984, anchor: no}\n- {target: 007, anchor: 2020-01-01, images: }\n")
    (tmp_path / "a.csv").write_text("target,anchor\n1984,no\n007,2020-01-01\n")
    found = read_concepts(str(tmp_path / "a.yaml"))
    assert found == read_concepts(str(tmp_path / "a.csv"))
    assert [(c.target, c.anchor, c.images) for c in found] == [("1984", "no", None), ("007", "2020-01-01", None)]


def test_names_of_equal_tokens_are_one(pipeline: StableDiffusionPipeline) -> None:
    assert names_beside(pipeline, ["Ship", "dog", "DOG", "[cat]", "[ cat ]"], ["ship"]) == ["dog", "[cat]"]
    assert spelled_as(pipeline, ["Ship", "sky"], ["dog", "ship"]) == ["ship", "sky"]
    assert names_that_stay(pipeline, ["SHIP", "[ship ]"], ["ship", "[ship]"]) == []


def test_a_textual_inversion_counts_all_its_vectors(toy_pipeline: Path, tmp_path: Path) -> None:
    made = StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)
    made.load_textual_inversion({"<sks>": torch.arange(96.0).view(3, 32) / 96})
    made.save_pretrained(tmp_path / "own")
    own = StableDiffusionPipeline.from_pretrained(tmp_path / "own", safety_checker=None)
    start, stop = target_span(own.tokenizer, "a photo of a {} in the sky", "<sks>")
    assert stop - start == 3 and len(name_tokens(own, "<sks>")[0]) == 5
    ids = own.tokenizer(own.maybe_convert_prompt("a photo of a <sks> in the sky", own.tokenizer)).input_ids
    assert own.tokenizer.convert_ids_to_tokens(ids[start:stop]) == ["<sks>", "<sks>_1", "<sks>_2"]
    embedded = encode_prompts(own, ["a photo of a <sks> in the sky"])
    other = own.text_encoder(torch.tensor([ids]))[0]
    close(embedded[0, :stop], other[0, :stop], FLOAT32_PASS)


def test_names_with_brackets_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name")
    table.add_row("[sks] ship [/old] :ship:")
    screen().print(table)
    assert "[sks] ship [/old] :ship:" in capsys.readouterr().out


def test_names_stay_in_their_cells_of_a_markdown_table() -> None:
    assert markdown_table(["a", "b"], [["<sks> | x", 1]]) == "| a | b |\n|---|---|\n| &lt;sks> &#124; x | 1 |"
