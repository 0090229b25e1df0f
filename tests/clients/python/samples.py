"""What the client tests share: the address, tensors, and what the sample models must answer.

The references are plain numpy and know nothing of torch: weights are read out of the archives, which
are zips.
"""

import os
import string
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
from tritonclient.grpc import InferInput
from tritonclient.utils import np_to_triton_dtype

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / "tests" / "data"
REPOSITORY = ROOT / "model_repository"
MODELS = ["add_sub", "char_lm", "dict_stats", "digits", "running_sum", "text_stats"]
DIGIT = 7  # what tests/data/digit.png shows

INVALID_ARGUMENT = "StatusCode.INVALID_ARGUMENT"
NOT_FOUND = "StatusCode.NOT_FOUND"
INTERNAL = "StatusCode.INTERNAL"
UNIMPLEMENTED = "StatusCode.UNIMPLEMENTED"
DEADLINE_EXCEEDED = "StatusCode.DEADLINE_EXCEEDED"


def address() -> str:
    """Where the server is, as host:port."""
    try:
        return os.environ["SCONCE_ADDRESS"]
    except KeyError:
        raise RuntimeError(
            "these tests need a server: run `sconce serve --model-repository model_repository` "
            "and set SCONCE_ADDRESS to its gRPC address, like 127.0.0.1:8001"
        ) from None


def tensor(name: str, values: np.ndarray) -> InferInput:
    """An input that carries these values; texts are an array of dtype object."""
    made = InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    return made.set_data_from_numpy(values)


def texts(*lines: str | bytes) -> np.ndarray:
    return np.array(lines, dtype=np.object_)


def digit_image() -> np.ndarray:
    """The held-out seven as a batch of one."""
    return np.load(DATA / "digit.npy")[np.newaxis]


def digit_images(count: int, seed: int) -> np.ndarray:
    """A batch of the seven under noise, so that every row has its own answer."""
    noise = np.random.default_rng(seed).normal(0, 0.2, (count, 1, 8, 8))
    return np.clip(digit_image() + noise, 0, 1).astype(np.float32)


@cache
def _digit_weights() -> list[np.ndarray]:
    shapes = [(16, 1, 3, 3), (16,), (32, 16, 3, 3), (32,), (64, 32, 3, 3), (64,), (10, 1024), (10,)]
    with zipfile.ZipFile(REPOSITORY / "digits" / "1" / "model.pt") as archive:
        return [
            np.frombuffer(archive.read(f"model/data/{index}"), "<f4").reshape(shape).astype(np.float64)
            for index, shape in enumerate(shapes)
        ]


def digit_scores(images: np.ndarray) -> np.ndarray:
    """The probabilities that `digits` must give for a batch."""

    def convolve(planes, kernel, bias):
        padded = np.pad(planes, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        sums = np.einsum("nchwij,ocij->nohw", windows, kernel) + bias[:, None, None]
        return np.maximum(sums, 0)

    kernel0, bias0, kernel1, bias1, kernel2, bias2, matrix, bias3 = _digit_weights()
    planes = convolve(convolve(images.astype(np.float64), kernel0, bias0), kernel1, bias1)
    planes = planes.reshape(len(planes), 32, 4, 2, 4, 2).max(axis=(3, 5))
    logits = convolve(planes, kernel2, bias2).reshape(len(planes), -1) @ matrix.T + bias3
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def cleaned(line: str | bytes) -> bytes:
    """What `text_stats` must make of a line: TorchScript's strings are bytes, and only ASCII changes."""
    data = line.encode() if isinstance(line, str) else line
    data = data.lower().translate(None, string.punctuation.encode()).replace(b"\t", b" ").replace(b"\n", b" ")
    return b" ".join(word for word in data.split(b" ") if word)


def word_count(line: str | bytes) -> int:
    clean = cleaned(line)
    return clean.count(b" ") + 1 if clean else 0


def pair(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two batches for `add_sub`, of whole numbers, so that sums are exact."""
    numbers = np.random.default_rng(seed).integers(-(2**20), 2**20, (2, rows, 16)).astype(np.float32)
    return numbers[0], numbers[1]


def pair_inputs(first: np.ndarray, second: np.ndarray) -> list[InferInput]:
    return [tensor("INPUT0", first), tensor("INPUT1", second)]


def check_pair(case, result, first: np.ndarray, second: np.ndarray) -> None:
    """`add_sub` must have answered these two, to the bit."""
    case.assertEqual(result.as_numpy("OUTPUT__0").dtype, np.float32)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT__0"), first + second)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT__1"), first - second)


def check_digits(case, result, images: np.ndarray) -> None:
    scores = result.as_numpy("scores")
    case.assertEqual(scores.dtype, np.float32)
    case.assertEqual(scores.shape, (len(images), 10))
    np.testing.assert_allclose(scores, digit_scores(images), rtol=1e-3, atol=1e-6)


def check_texts(case, result, lines: list[str | bytes]) -> None:
    case.assertEqual(list(result.as_numpy("clean")), [cleaned(line) for line in lines])
    words = result.as_numpy("words")
    case.assertEqual(words.dtype, np.int64)
    case.assertEqual(list(words), [word_count(line) for line in lines])
