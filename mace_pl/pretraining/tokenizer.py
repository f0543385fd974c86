"""A small CLIP tokenizer of one's own, and its files as older and newer programs expect them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from mace_pl.errors import UserError
from mace_pl.export.readable import make_readable

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
WORD = re.compile(r"[^\W\d_]+|\d|[^\s\w]+|_+")  # as CLIP splits: letters, single digits, the rest


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> CLIPTokenizer:
    """A CLIPTokenizer with at most ``vocab_size`` entries: every byte, every byte at a word's end, merges, START, END.

    Raises:
        UserError: ``vocab_size`` leaves no room for the bytes.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = alphabet + [letter + WORD_END for letter in alphabet]
    room = vocab_size - len(letters) - 2
    if room < 0:
        raise UserError(f"vocab_size={vocab_size} is too small. Give at least {len(letters) + 2}.")
    merges = learn_merges({word for caption in captions for word in WORD.findall(caption.lower())}, room)
    entries = [*letters, *(left + right for left, right in merges), START, END]
    vocab = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def learn_merges(words: Iterable[str], limit: int) -> list[tuple[str, str]]:
    """Byte-pair encoding of distinct words: the most frequent pair first, equal ones in alphabetical order.

    The trainer of the tokenizers library breaks ties at random: a resumed run would find other tokens.
    """
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    spelled = [to_bytes(word)[0][0] for word in sorted(words)]
    pieces = [[*word[:-1], word[-1] + WORD_END] for word in spelled]
    merges: list[tuple[str, str]] = []
    while len(merges) < limit:
        counts = Counter(pair for word in pieces for pair in zip(word, word[1:], strict=False))
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        pieces = [merge(word, best) for word in pieces]
    return merges


def merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    """The pieces of a word with every ``pair`` of neighbours joined."""
    joined: list[str] = []
    for piece in word:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Writes tokenizer.json, and beside it the vocab.json and merges.txt that programs before transformers 5 read."""
    tokenizer.save_pretrained(folder)
    make_readable(folder)
