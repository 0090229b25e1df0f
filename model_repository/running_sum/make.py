"""Writes 1/model.pt: adds up the values of a sequence, one request at a time.

    pip install torch==2.11.0
    python make.py

The model itself keeps nothing. The server gives it the total that it returned for the request before
of the same sequence, and zero for the first.
"""

import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch


class Totals(NamedTuple):
    sum: torch.Tensor
    new_total: torch.Tensor


class RunningSum(torch.nn.Module):
    def forward(self, value: torch.Tensor, total: torch.Tensor) -> Totals:
        added = total + value
        return Totals(added, added)


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
    save(torch.jit.script(RunningSum().eval()), Path(__file__).resolve().parent / "1" / "model.pt")
