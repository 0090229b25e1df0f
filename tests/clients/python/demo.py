"""Classifies tests/data/digit.png through tritonclient.

    SCONCE_ADDRESS=127.0.0.1:8001 python tests/clients/python/demo.py [picture.png]

Without SCONCE_ADDRESS it asks 127.0.0.1:8001. `--show` only prints the picture.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

DIGIT = Path(__file__).resolve().parents[2] / "data" / "digit.png"


def show(image: np.ndarray) -> None:
    """The picture as text: two characters for a pixel, darker ink for a higher value."""
    shades = " .:-=+*#%@"
    for row in image:
        print("    " + "".join(shades[round(float(pixel) * (len(shades) - 1))] * 2 for pixel in row).rstrip())


def classify(address: str, image: np.ndarray) -> None:
    from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

    picture = InferInput("image", [1, 1, 8, 8], "FP32")
    picture.set_data_from_numpy(image.reshape(1, 1, 8, 8))
    with InferenceServerClient(address) as client:
        result = client.infer("digits", [picture], outputs=[InferRequestedOutput("scores", class_count=3)])
    for entry in result.as_numpy("scores")[0]:
        value, _, label = entry.decode().split(":")
        print(f"    {label:<6} {float(value):8.4%}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Reads a handwritten digit through tritonclient.")
    parser.add_argument("picture", nargs="?", type=Path, default=DIGIT)
    parser.add_argument("--show", action="store_true", help="only print the picture")
    options = parser.parse_args()

    image = np.asarray(Image.open(options.picture).convert("L").resize((8, 8)), np.float32) / 255
    if options.show:
        show(image)
        return 0
    address = os.environ.get("SCONCE_ADDRESS", "127.0.0.1:8001")
    try:
        classify(address, image)
    except Exception as error:
        print(f"no answer from {address}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
