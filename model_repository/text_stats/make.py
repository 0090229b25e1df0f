"""Writes 1/model.pt: text in, text and numbers out.

    pip install torch==2.11.0
    python make.py

TorchScript's strings are bytes: only ASCII letters change case and only ASCII punctuation is
dropped. Everything else, UTF-8 or not, passes as it is. Of TorchScript's own, replace() takes time by
the square of the length, and split() without a separator cuts some characters in two.
"""

import io
import zipfile
from pathlib import Path
from typing import List, Tuple

import torch


class TextStats(torch.nn.Module):
    def forward(self, text: List[str]) -> Tuple[List[str], torch.Tensor]:
        clean: List[str] = []
        counts: List[int] = []
        for line in text:
            line = line.lower()
            for mark in ["!", '"', "#", "$", "%", "&", "'", "(", ")", "*", "+", ",", "-", ".", "/", ":", ";"]:
                line = "".join(line.split(mark))
            for mark in ["<", "=", ">", "?", "@", "[", "\\", "]", "^", "_", "`", "{", "|", "}", "~"]:
                line = "".join(line.split(mark))
            for space in ["\t", "\n"]:
                line = " ".join(line.split(space))
            words: List[str] = []
            for word in line.split(" "):
                if len(word) > 0:
                    words.append(word)
            clean.append(" ".join(words))
            counts.append(len(words))
        return clean, torch.tensor(counts, dtype=torch.int64)


def save(module: torch.jit.ScriptModule, path: Path) -> None:
    """Saves without the debug records: they name the source files of the machine that made it."""
    whole, stripped = io.BytesIO(), io.BytesIO()
    torch.jit.save(module, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(stripped, "w") as new:
        for name in old.namelist():
            if not name.endswith(".debug_pkl"):
                new.writestr(name, old.read(name))
    stripped.seek(0)
    path.parent.mkdir(exist_ok=True)
    torch.jit.save(torch.jit.load(stripped), str(path))


if __name__ == "__main__":
    save(torch.jit.script(TextStats().eval()), Path(__file__).resolve().parent / "1" / "model.pt")
