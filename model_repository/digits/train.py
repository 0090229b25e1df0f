"""Trains the sample model on scikit-learn's handwritten digits and writes 1/model.pt.

    pip install torch==2.11.0 scikit-learn numpy pillow
    PYTHONHASHSEED=0 python train.py

With the hash seed the archive comes out the same to the byte (TorchScript writes a set of names in
its order).

A fifth of the digits, chosen by class, is held out: never trained on, used once, at the end.
A held-out digit that the model reads right goes to tests/data for the tests and the demo.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).resolve().parent
TEST_DATA = HERE.parent.parent / "tests" / "data"
SEED = 7
EPOCHS = 60
BATCH = 64


class Digits(nn.Module):
    """A small CNN: pixels from 0 to 1 in, probabilities of the ten digits out."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.4),
            nn.Linear(64 * 4 * 4, 10),
        )

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        return self.features(image)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.logits(image), dim=1)


def moved(images: torch.Tensor) -> torch.Tensor:
    """The same images, each moved by up to one pixel."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (len(images), 2))
    return torch.stack([padded[i, :, y : y + 8, x : x + 8] for i, (y, x) in enumerate(offsets.tolist())])


def train(images: torch.Tensor, labels: torch.Tensor) -> Digits:
    model = Digits()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3)
    steps = EPOCHS * ((len(images) + BATCH - 1) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH):
            loss = nn.functional.cross_entropy(model.logits(moved(images[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def save(module: torch.jit.ScriptModule, path: Path) -> None:
    """Saves without the debug records: they name the source files of the machine that trained."""
    whole, stripped = io.BytesIO(), io.BytesIO()
    torch.jit.save(module, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(stripped, "w") as new:
        for name in old.namelist():
            if not name.endswith(".debug_pkl"):
                new.writestr(name, old.read(name))
    stripped.seek(0)
    path.parent.mkdir(exist_ok=True)
    torch.jit.save(torch.jit.load(stripped), str(path))


def main() -> None:
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)

    digits = load_digits()
    images = torch.from_numpy((digits.images / 16).astype(np.float32)).unsqueeze(1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    kept, held_out = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=digits.target, random_state=SEED)

    model = train(images[kept], labels[kept])
    save(torch.jit.script(model), HERE / "1" / "model.pt")

    served = torch.jit.load(str(HERE / "1" / "model.pt"))
    with torch.no_grad():
        scores = served(images[held_out])
    right = scores.argmax(dim=1) == labels[held_out]
    accuracy = right.double().mean().item()
    print(f"held-out accuracy: {accuracy:.2%} ({int(right.sum())} of {len(right)})")
    assert accuracy > 0.97

    # The first held-out seven: an asymmetric digit, so that a flipped or transposed image would show.
    row = next(i for i, index in enumerate(held_out) if labels[index] == 7 and right[i])
    index = int(held_out[row])
    pixels = digits.images[index]
    Image.fromarray(np.round(pixels / 16 * 255).astype(np.uint8)).save(TEST_DATA / "digit.png")
    np.save(TEST_DATA / "digit.npy", images[index].numpy())
    print(f"digit.png: sample {index} of the data set, label {digits.target[index]}, score {scores[row].max():.4f}")


if __name__ == "__main__":
    main()
