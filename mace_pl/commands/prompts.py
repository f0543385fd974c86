"""Prompts kept in a file: written by a language model for each target, or frames learnt from a model's captions."""

from __future__ import annotations

import json
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from mace_pl.concepts.concept import Concept, read_concepts, read_names
from mace_pl.concepts.frames import Frames
from mace_pl.data.caption_files import CaptionSource
from mace_pl.errors import UserError
from mace_pl.files.artifacts import written_aside
from mace_pl.files.owned import refuse_inputs
from mace_pl.files.paths import resolve

log = logging.getLogger(__name__)

LONGEST = 200  # characters of a caption
REQUEST = {
    "object": "Write {n} different short captions of pictures that show {x}. Every caption must contain the words {x}.",
    "person": "Write {n} different short captions of pictures of {x}. Every caption must contain the name {x}.",
    "style": "Write {n} different short captions of pictures in the style of {x}. Every caption must contain {x}.",
}
FORM = " One caption in each line, in English, without numbers, quotes or comments."

Ask = Callable[[str, int], str]  # a request and a seed to the answer


def write_prompts(
    output: str,
    concepts: str | list[dict[str, Any] | str] | None = None,
    language_model: str | None = None,
    captions: list[str] | str | None = None,
    vocabulary: list[str] | str | None = None,
    column: str = "caption",
    endpoint: str | None = None,
    key_variable: str = "OPENAI_API_KEY",
    count: int = 30,
    rounds: int = 5,
    temperature: float = 0.9,
    max_tokens: int = 1500,
    seed: int = 2024,
    overwrite: bool = False,
) -> Path:
    """Prompts for ``--data.templates`` of ``fit``: by a language model, or learnt from captions.

    Args:
        output: the file to write: of a language model YAML with a list of prompts for each target, ``{}`` in its place;
            of captions a text with a template on each line, for any target.
        concepts: the targets that a language model writes of, as in ``--data.concepts``.
        language_model: the model's name at the endpoint; without endpoint, folder or hub id of a text-generation model.
        captions: files of the captions that a model was trained with, as in ``--data.sources`` of ``cache``: the frames
            around names of ``vocabulary`` become templates, the most frequent first.
        vocabulary: what the captions name: a list, or a text file with a name on each line.
        column: the column of captions in .csv, .jsonl and .parquet.
        endpoint: address of an OpenAI-compatible service, as in http://localhost:8000/v1.
        key_variable: environment variable that holds the service's key; it is not written anywhere.
        count: prompts of each target, or templates at most.
        rounds: how often the model is asked for what is missing.
        temperature: of its sampling.
        max_tokens: of one answer.
        seed: of its sampling; services may ignore it.
        overwrite: replace ``output`` where it exists.

    Returns:
        The file that was written.

    Raises:
        UserError: the model cannot be asked, or has not written enough captions that hold the target; captions that
            cannot be read, or that name nothing; options that do not go together.
    """
    path = Path(output)
    _check_call(path, overwrite, count=count, rounds=rounds, max_tokens=max_tokens)
    given = [captions] if isinstance(captions, str) else captions or []
    places = [("concepts", concepts if isinstance(concepts, str) else None), *(("captions", file) for file in given)]
    refuse_inputs(path, [*places, ("vocabulary", vocabulary if isinstance(vocabulary, str) else None)], "output")
    if captions is not None or vocabulary is not None:
        if concepts is not None or language_model is not None or endpoint is not None:
            raise UserError("captions: no language model is asked. Leave --concepts, --language_model, --endpoint out.")
        return learn_templates(path, captions, vocabulary, column, count)
    if concepts is None or language_model is None:
        raise UserError("give --concepts and --language_model, or --captions and --vocabulary.")
    wanted = read_concepts(concepts)
    if endpoint is None:
        ask = local_model(language_model, temperature, max_tokens)
    else:
        ask = service(endpoint, language_model, os.environ.get(key_variable, ""), temperature, max_tokens)
    templates = {concept.target: written(concept, ask, count, rounds, seed) for concept in wanted}
    with written_aside(path) as aside:
        aside.write_text(yaml.safe_dump(templates, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def _check_call(path: Path, overwrite: bool, **counts: int) -> None:
    """Refuse an output that exists, and numbers below 1.

    Raises:
        UserError: either of them.
    """
    if path.exists() and not overwrite:
        raise UserError(f"output={path} exists. Choose another --output, or pass --overwrite true.")
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1.")


def learn_templates(
    path: Path, captions: list[str] | str | None, vocabulary: list[str] | str | None, column: str, count: int
) -> Path:
    """Write the most frequent frames of captions, and say how many captions have them; see :func:`write_prompts`."""
    sources, names = [captions] if isinstance(captions, str) else captions or [], read_names(vocabulary, "vocabulary")
    if not sources or not names:
        raise UserError("captions and vocabulary go together: give files of captions, and the names that they hold.")
    frames = Frames(names)
    for source in sources:
        frames.add(CaptionSource(source, column, setting="captions", option="column").captions())
    found = frames.templates(count)
    if not found:
        raise UserError(
            f"vocabulary: of {frames.captions} captions {frames.framed} hold one of its names alone, and no two names "
            f"stand in the same words. Give the names that the captions use, or more captions."
        )
    with written_aside(path) as aside:
        aside.write_text("".join(f"{template}\n" for template, _ in found), encoding="utf-8")
    covered = sum(number for _, number in found)
    log.info(
        f"{len(found)} of {len(frames.spellings)} frames, those of {covered} of the {frames.framed} captions that hold "
        f"one name ({frames.captions} were read). The most frequent: {found[0][0]!r}, {found[0][1]} times."
    )
    return path


def written(concept: Concept, ask: Ask, count: int, rounds: int, seed: int) -> list[str]:
    """``count`` different templates of a concept.

    Raises:
        UserError: fewer after all rounds.
    """
    prompts: dict[str, None] = {}
    for number in range(rounds):
        left = count - len(prompts)
        request = REQUEST[concept.kind].replace("{n}", str(left)).replace("{x}", concept.target) + FORM
        prompts |= dict.fromkeys(templates_in(ask(request, seed + number), concept.target))
        if len(prompts) >= count:
            return list(prompts)[:count]
    raise UserError(
        f"language_model: only {len(prompts)} of {count} captions hold {concept.target!r} exactly once after {rounds} "
        f"rounds. Use another model, more --rounds, or a smaller --count."
    )


def templates_in(answer: str, target: str) -> list[str]:
    """The captions of an answer as templates; those that do not name the target exactly once are rejected."""
    pattern = re.compile(rf"(?<!\w){re.escape(target)}(?!\w)", re.IGNORECASE)
    templates = []
    for line in answer.splitlines():
        caption = re.sub(r"^\s*(?:\d+\s*[.)]|[-*•])\s*", "", line).strip().strip("\"'“”").rstrip(".")
        template, times = pattern.subn("{}", caption)
        if times == 1 and template.count("{") == template.count("}") == 1 and len(caption) <= LONGEST:
            templates.append(template)
    return templates


def service(endpoint: str, name: str, key: str, temperature: float, max_tokens: int) -> Ask:
    """Ask an OpenAI-compatible service for a chat completion."""
    address = f"{endpoint.rstrip('/')}/chat/completions"

    def ask(request: str, seed: int) -> str:
        messages = [{"role": "user", "content": request}]
        body = {"model": name, "messages": messages, "temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        call = urllib.request.Request(address, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(call, timeout=300) as answer:
                content: str = json.load(answer)["choices"][0]["message"]["content"]
        except (urllib.error.URLError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(
                f"endpoint={endpoint} gave no answer ({type(error).__name__}: {error}). Check address, model and key."
            ) from error
        return content

    return ask


def local_model(given: str, temperature: float, max_tokens: int) -> Ask:
    """Ask a text-generation model of transformers, by its chat template where it has one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = resolve(given)
    name = str(source) if source.exists() else given
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, use_safetensors=True).eval()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"language_model={given} cannot be loaded: {error}. Give a folder or hub id of a text-generation model, or "
            f"an endpoint."
        ) from error

    @torch.no_grad()
    def ask(request: str, seed: int) -> str:
        if tokenizer.chat_template:
            chat = [{"role": "user", "content": request}]
            request = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(request, return_tensors="pt")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            ids = model.generate(**inputs, do_sample=True, temperature=temperature, max_new_tokens=max_tokens)
        answer: str = tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        return answer

    return ask
