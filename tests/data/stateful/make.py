"""Writes models that change their own attributes in ways that the test models' source cannot say, and two
that only look as if they did.

    pip install torch==2.11.0
    python make.py
"""

import io
import zipfile
from pathlib import Path
from typing import Dict, List

import torch
from torch import Tensor


class ForkInPlace(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    @torch.jit.export
    def step(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return x + self.count

    def forward(self, x: Tensor) -> Tensor:
        return torch.jit.wait(torch.jit.fork(self.step, x))


class ForkAttribute(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.count = 0

    @torch.jit.export
    def step(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return x + self.count

    def forward(self, x: Tensor) -> Tensor:
        return torch.jit.wait(torch.jit.fork(self.step, x))


class ListItem(torch.nn.Module):
    parts: List[Tensor]

    def __init__(self):
        super().__init__()
        self.parts = [torch.zeros(1)]

    def forward(self, x: Tensor) -> Tensor:
        self.parts[0].add_(1)
        return x + self.parts[0]


class DictItem(torch.nn.Module):
    parts: Dict[str, Tensor]

    def __init__(self):
        super().__init__()
        self.parts = {"a": torch.zeros(1)}

    def forward(self, x: Tensor) -> Tensor:
        self.parts["a"].add_(1)
        return x + self.parts["a"]


class Statistics(torch.nn.Module):
    """Writes to the running mean, which the operator's schema does not say."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("variance", torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        torch.nn.functional.batch_norm(x, self.mean, self.variance, training=True)
        return x + self.mean


class ReadingFork(torch.nn.Module):
    """Served: the fork changes only what it has made."""

    def __init__(self):
        super().__init__()
        self.register_buffer("one", torch.ones(1))

    @torch.jit.export
    def step(self, x: Tensor) -> Tensor:
        y = x + self.one
        y.mul_(2)
        return y

    def forward(self, x: Tensor) -> Tensor:
        return torch.jit.wait(torch.jit.fork(self.step, x))


@torch.jit.script
class Box:
    def __init__(self, value: Tensor):
        self.value = value


class LocalObject(torch.nn.Module):
    """Served: the object whose attribute is set is made in forward. The norm has statistics, unchanged."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        box = Box(self.norm(x))
        box.value = box.value * 2
        return box.value


class Growing(torch.nn.Module):
    """Returns its state itself, for `stateful: true`."""

    def __init__(self):
        super().__init__()
        self.register_buffer("state", torch.zeros(4096))

    def forward(self, x: Tensor) -> Tensor:
        self.state.add_(x.sum())
        return self.state


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
    here = Path(__file__).resolve().parent
    for model in (ForkInPlace, ForkAttribute, ListItem, DictItem, Statistics, ReadingFork, LocalObject, Growing):
        save(torch.jit.script(model().eval()), here / f"{model.__name__}.pt")
