"""Prompts by a language model (a service as OpenAI's, a toy of transformers), and templates learnt from captions."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.runs import exit_message
from support.seeds import seeded
from transformers import CLIPTokenizer, GPT2Config, GPT2LMHeadModel

from mace_pl.cli import erase_main
from mace_pl.commands.prompts import local_model, templates_in
from mace_pl.concepts.concept import Concept, templates_of
from mace_pl.data.concepts import ConceptData

ANSWERS = ["1. A ship at sea.\n2. the sea\n3. a ship and a ship", '- "an old Ship in a harbour"\n* A ship at sea']


class Service(BaseHTTPRequestHandler):
    """Answers one after the other, and keeps what was asked."""

    asked: list[dict[str, Any]] = []
    keys: list[str | None] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        self.keys.append(self.headers["Authorization"])
        content = ANSWERS[(len(self.asked) - 1) % len(ANSWERS)]
        found = self.path == "/v1/chat/completions"
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": content}}]}).encode() if found else b"{}")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    Service.asked, Service.keys = [], []
    server = HTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def command(address: str, output: Path, count: int, *more: str) -> list[str]:
    concepts = "[{target: ship, anchor: sky}]"
    args = ["prompts", "--concepts", concepts, "--output", str(output), "--language_model", "toy"]
    return [*args, "--endpoint", address, "--count", str(count), *more]


def test_a_service_is_asked_until_there_are_enough(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_KEY", "secret")
    file = tmp_path / "prompts.yaml"
    erase_main(command(address, file, 2, "--key_variable", "TOY_KEY"))
    assert yaml.safe_load(file.read_text()) == {"ship": ["A {} at sea", "an old {} in a harbour"]}
    assert "secret" not in file.read_text()
    assert Service.keys == ["Bearer secret"] * 2
    assert [body["seed"] for body in Service.asked] == [2024, 2025] and Service.asked[0]["model"] == "toy"
    assert "Write 2 " in Service.asked[0]["messages"][0]["content"]
    assert "Write 1 " in Service.asked[1]["messages"][0]["content"]
    assert templates_of(str(file), [Concept("ship", "sky")]) == [["A {} at sea", "an old {} in a harbour"]]


def test_too_few_captions_leave_no_file(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.yaml"
    message = exit_message(command(address, file, 3, "--rounds", "2"), capsys)
    assert "only 2 of 3 captions hold 'ship' exactly once after 2 rounds" in message
    assert not file.exists()


def test_a_service_that_is_not_there_is_named(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = address.replace("/v1", "/v2")
    assert f"endpoint={wrong} gave no answer" in exit_message(command(wrong, tmp_path / "a.yaml", 1), capsys)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a photo of a ship", ["a photo of a {}"]),
        ("3) 'Ship at night.'", ["{} at night"]),
        ("a photo of the sea", []),  # not the target
        ("two ships", []),  # another word
        ("a ship beside a ship", []),  # which one is meant?
        ("a {ship}", []),
        ("a ship " + "and the sea " * 20, []),
    ],
)
def test_captions_become_templates(line: str, expected: list[str]) -> None:
    assert templates_in(line, "ship") == expected


def learnt(folder: Path, *more: str) -> list[str]:
    (folder / "names.txt").write_text("ship\nbird\n")
    rows = ["prompt", "a ship at sea", "a bird at sea", "my ship", "my bird", "A Bird at sea", "two ships"]
    (folder / "captions.csv").write_text("\n".join(rows))
    files = ["--captions", str(folder / "captions.csv"), "--vocabulary", str(folder / "names.txt")]
    return ["prompts", *files, "--output", str(folder / "out" / "templates.txt"), *more]


def test_templates_are_learnt_from_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    erase_main(learnt(tmp_path, "--column", "prompt"))
    file = tmp_path / "out" / "templates.txt"
    assert file.read_text() == "a {} at sea\nmy {}\n"
    assert "2 of 2 frames, those of 5 of the 5 captions that hold one name (6 were read)" in capsys.readouterr().err
    ship = Concept("ship", "sky")
    assert (
        templates_of(str(file), [ship]) == ConceptData([vars(ship)], str(file)).templates == [["a {} at sea", "my {}"]]
    )
    assert "exists. Choose another --output" in exit_message(learnt(tmp_path, "--column", "prompt"), capsys)
    erase_main(learnt(tmp_path, "--column", "prompt", "--count", "1", "--overwrite", "true"))
    assert file.read_text() == "a {} at sea\n"


def test_captions_are_not_replaced_by_what_is_learnt_from_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = learnt(tmp_path, "--column", "prompt", "--overwrite", "true")
    before = (tmp_path / "captions.csv").read_bytes()
    message = exit_message([*args, "--output", str(tmp_path / "captions.csv")], capsys)
    assert "captions.csv is the captions (" in message and (tmp_path / "captions.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "captions.csv: has no column 'caption', its columns are prompt. Name one with --column."),
        (["--column", "prompt", "--vocabulary", "[dog]"], "of 6 captions 0 hold one of its names alone"),
        (["--vocabulary", "[]"], "captions and vocabulary go together"),
        (["--captions", "nowhere.txt"], "captions: nowhere.txt: cannot be read"),
        (["--concepts", "[{target: ship, anchor: sky}]"], "Leave --concepts, --language_model, --endpoint out"),
        (["--count", "0"], "count=0 must be at least 1"),
    ],
)
def test_captions_that_teach_nothing_leave_no_file(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in exit_message(learnt(tmp_path, *more), capsys)
    assert not (tmp_path / "out").exists()


def test_one_of_both_ways_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = exit_message(["prompts", "--output", str(tmp_path / "out.yaml")], capsys)
    assert "give --concepts and --language_model, or --captions and --vocabulary." in message


def test_a_model_of_transformers_is_asked_with_its_seed(toy_pipeline: Path, tmp_path: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(toy_pipeline / "tokenizer", model_max_length=200)
    torch.manual_seed(seeded(0))
    size = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 256}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **size, **ends)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ask = local_model(str(tmp_path), temperature=1.0, max_tokens=20)
    before = torch.random.get_rng_state()
    first, again, other = ask("a ship", 1), ask("a ship", 1), ask("a ship", 2)
    assert first == again != other
    assert torch.equal(before, torch.random.get_rng_state())


def test_templates_are_looked_up_by_target_then_by_kind() -> None:
    concepts = [Concept("ship", "sky"), Concept("cat", "sky"), Concept("Amy", "a person", "person")]
    found = templates_of({"ship": ["my {}"], "object": ["one {}"]}, concepts)
    assert found[:2] == [["my {}"], ["one {}"]]
    assert len(found[2]) >= 30
    with pytest.raises(ValueError, match="'dog' is neither a target nor a kind"):
        templates_of({"dog": ["my {}"]}, concepts)
