"""Writes model.pt: a NamedTuple cannot be defined in the source that the other test models are made of.

    pip install torch==2.11.0
    python make.py
"""

import io
import zipfile
from pathlib import Path
from typing import List, NamedTuple

import torch


class Answer(NamedTuple):
    total: torch.Tensor
    parts: List[torch.Tensor]


class Model(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> Answer:
        return Answer(x.sum(), [x + 1, x * 2])


def save(module: torch.jit.ScriptModule, path: Path) -> None:
    """Saves without the debug records: they name the source files of the machine that made it."""
    whole, stripped = io.BytesIO(), io.BytesIO()
    torch.jit.save(module, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(stripped, "w") as new:
        for name in old.namelist():
            if not name.endswith(".debug_pkl"):
                new.writestr(name, old.read(name))
    stripped.seek(0)
    torch.jit.save(torch.jit.load(stripped), str(path))


if __name__ == "__main__":
    save(torch.jit.script(Model().eval()), Path(__file__).resolve().parent / "model.pt")
