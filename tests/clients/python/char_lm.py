"""What the sample model `char_lm` must write, in plain numpy: a GRU, SplitMix64 and a choice by chance."""

import zipfile
from functools import cache

import numpy as np

from samples import REPOSITORY

HIDDEN = 192
MASK = 2**64 - 1  # what wraps in 64 bits
LONGEST = 500  # bytes of a prompt that are read
MAX_STEPS = 400  # of its configuration


@cache
def _characters() -> str:
    """Symbol 0 is the end of a text, the others are these."""
    paragraphs = (REPOSITORY / "char_lm" / "alice.txt").read_text(encoding="ascii").split("\n\n")
    return "".join(sorted(set("".join(paragraph.strip() for paragraph in paragraphs))))


@cache
def _weights() -> list[np.ndarray]:
    count = 1 + len(_characters())
    shapes = [(count, 3 * HIDDEN), (HIDDEN, 3 * HIDDEN), (3 * HIDDEN,), (HIDDEN, count), (count,)]
    with zipfile.ZipFile(REPOSITORY / "char_lm" / "1" / "model.pt") as archive:
        return [
            np.frombuffer(archive.read(f"model/data/{index}"), "<f2").reshape(shape).astype(np.float64)
            for index, shape in enumerate(shapes)
        ]


def _read(symbol: int, hidden: np.ndarray) -> np.ndarray:
    table, weight, bias, _, _ = _weights()
    from_symbol, from_hidden = np.split(table[symbol], 3), np.split(hidden @ weight + bias, 3)
    reset = 1 / (1 + np.exp(-(from_symbol[0] + from_hidden[0])))
    update = 1 / (1 + np.exp(-(from_symbol[1] + from_hidden[1])))
    return (1 - update) * np.tanh(from_symbol[2] + reset * from_hidden[2]) + update * hidden


def _mix(state: int) -> float:
    """SplitMix64's number for a state, from 0 to 1."""
    mixed = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & MASK
    return ((mixed ^ mixed >> 31) >> 11) * 2.0**-53


def written(prompt: str | bytes, temperature: float = 0.6, seed: int = 0, steps: int = MAX_STEPS) -> list[str]:
    """The texts of all answers to a prompt: a character each, and nothing in the last if the text has ended."""
    _, _, _, weight, bias = _weights()
    hidden, state = np.zeros(HIDDEN), seed
    data = prompt.encode() if isinstance(prompt, str) else prompt
    known = [one if one in _characters() else " " for one in data[-LONGEST:].decode("latin-1")]
    for symbol in [0] + [1 + _characters().index(character) for character in known]:
        hidden = _read(symbol, hidden)
        state = (state ^ symbol) * 1099511628211 & MASK
    texts = []
    for _ in range(steps):
        logits = hidden @ weight + bias
        state = state + 0x9E3779B97F4A7C15 & MASK
        symbol = int(logits.argmax())
        if temperature > 0:
            bounds = np.cumsum(np.exp((logits - logits.max()) / np.float64(np.float32(temperature))))
            symbol = int((bounds <= _mix(state) * bounds[-1]).sum())
        texts.append(_characters()[symbol - 1] if symbol else "")
        if symbol == 0:
            break
        hidden = _read(symbol, hidden.astype(np.float32).astype(np.float64))
    return texts
