"""Prompts of a target written by a language model, kept in a file: a caption without the target is rejected."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from mace_pl.concepts.concept import Concept, read_concepts
from mace_pl.errors import UserError
from mace_pl.files.artifacts import written_aside
from mace_pl.files.paths import resolve

LONGEST = 200  # characters of a caption
REQUEST = {
    "object": "Write {n} different short captions of pictures that show {x}. Every caption must contain the words {x}.",
    "person": "Write {n} different short captions of pictures of {x}. Every caption must contain the name {x}.",
    "style": "Write {n} different short captions of pictures in the style of {x}. Every caption must contain {x}.",
}
FORM = " One caption in each line, in English, without numbers, quotes or comments."

Ask = Callable[[str, int], str]  # a request and a seed to the answer


def write_prompts(
    concepts: str | list[dict[str, Any]],
    output: str,
    language_model: str,
    endpoint: str | None = None,
    key_variable: str = "OPENAI_API_KEY",
    count: int = 30,
    rounds: int = 5,
    temperature: float = 0.9,
    max_tokens: int = 1500,
    seed: int = 2024,
    overwrite: bool = False,
) -> Path:
    """Let a language model write prompts of every target; ``--data.templates`` of ``fit`` takes the file.

    Args:
        concepts: as in ``--data.concepts``.
        output: the YAML file to write: for each target a list of prompts with ``{}`` in its place.
        language_model: the model's name at the endpoint; without endpoint, folder or hub id of a text-generation model.
        endpoint: address of an OpenAI-compatible service, as in http://localhost:8000/v1.
        key_variable: environment variable that holds the service's key; it is not written anywhere.
        count: prompts of each target.
        rounds: how often the model is asked for what is missing.
        temperature: of its sampling.
        max_tokens: of one answer.
        seed: of its sampling; services may ignore it.
        overwrite: replace ``output`` where it exists.

    Returns:
        The file that was written.

    Raises:
        UserError: the model cannot be asked, or has not written enough captions that hold the target.
    """
    path = Path(output)
    if path.exists() and not overwrite:
        raise UserError(f"output={output} exists. Choose another --output, or pass --overwrite true.")
    for name, value in (("count", count), ("rounds", rounds), ("max_tokens", max_tokens)):
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1.")
    wanted = read_concepts(concepts)
    if endpoint is None:
        ask = local_model(language_model, temperature, max_tokens)
    else:
        ask = service(endpoint, language_model, os.environ.get(key_variable, ""), temperature, max_tokens)
    templates = {concept.target: written(concept, ask, count, rounds, seed) for concept in wanted}
    with written_aside(path) as aside:
        aside.write_text(yaml.safe_dump(templates, sort_keys=False, allow_unicode=True), encoding="utf-8")
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
