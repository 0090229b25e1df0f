"""Writes 1/model.pt: Triton's classic, the sum and the difference of two vectors.

    pip install torch==2.11.0
    python make.py
"""

import io
import zipfile
from pathlib import Path
from typing import Tuple

import torch


class AddSub(torch.nn.Module):
    def forward(self, INPUT0: torch.Tensor, INPUT1: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        return INPUT0 + INPUT1, INPUT0 - INPUT1


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
    save(torch.jit.script(AddSub().eval()), Path(__file__).resolve().parent / "1" / "model.pt")
