"""Writes 1/model.pt: a dict of tensors in, a dict of tensors out, and no configuration at all.

    pip install torch==2.11.0
    python make.py
"""

import io
import zipfile
from pathlib import Path
from typing import Dict

import torch


class DictStats(torch.nn.Module):
    """Weighted statistics of `values`. Without `weights` every value weighs the same."""

    def forward(self, x: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
        for key in x.keys():
            if key != "values" and key != "weights":
                raise ValueError("dict_stats knows the inputs 'values' and 'weights', not '" + key + "'")
        if "values" not in x:
            raise ValueError("dict_stats needs the input 'values'")
        values = x["values"]
        weights = x["weights"] if "weights" in x else torch.ones_like(values)
        if values.shape != weights.shape:
            raise ValueError("dict_stats needs 'values' and 'weights' of one shape")
        weighted = values * weights
        total = weighted.sum()
        return {"mean": (total / weights.sum()).reshape(1), "total": total.reshape(1), "weighted": weighted}


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
    save(torch.jit.script(DictStats().eval()), Path(__file__).resolve().parent / "1" / "model.pt")
