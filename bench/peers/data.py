"""The Python side of bench/data.rs: makes the images, and times Pillow and torchvision on one core.

    data.py make FOLDER COUNT      photographs of broad waves and noise, JPEG of quality 90 and PNG
    data.py time FOLDER KIND       a line for each peer: name, tab, images a second
"""

import io
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

SIDE = 224


def make(folder: Path, count: int) -> None:
    y, x = np.mgrid[0:480, 0:640]
    for index in range(count):
        random = np.random.default_rng(index)
        waves = [np.sin(x / 40 + index) * np.cos(y / 31 + colour) for colour in range(3)]
        pixels = 127 + 100 * np.stack(waves, -1) + random.normal(0, 4, (480, 640, 3))
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{index:02}.jpg", quality=90)
        picture.save(folder / f"{index:02}.png")


def pillow(file: bytes) -> np.ndarray:
    picture = Image.open(io.BytesIO(file)).convert("RGB")
    width, height = picture.size
    edge = min(width, height)
    scaled = picture.resize((SIDE * width // edge, SIDE * height // edge), Image.Resampling.BICUBIC)
    left, top = (scaled.width - SIDE) // 2, (scaled.height - SIDE) // 2
    numbers = np.asarray(scaled.crop((left, top, left + SIDE, top + SIDE)), np.float32)
    return np.ascontiguousarray(((numbers / 255.0 - 0.5) / 0.5).transpose(2, 0, 1))


TORCHVISION = v2.Compose([
    v2.Resize(SIDE, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
    v2.CenterCrop(SIDE),
    v2.ToDtype(torch.float32, scale=True),
    v2.Normalize([0.5] * 3, [0.5] * 3),
])


def torchvision(file: bytes) -> torch.Tensor:
    picture = decode_image(torch.frombuffer(bytearray(file), dtype=torch.uint8), ImageReadMode.RGB)
    return TORCHVISION(picture)


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "make":
        make(folder, int(sys.argv[3]))
        return
    torch.set_num_threads(1)
    files = [path.read_bytes() for path in sorted(folder.glob(f"*.{sys.argv[3]}"))]
    for peer in (pillow, torchvision):
        peer(files[0])
        start = time.perf_counter()
        for file in files:
            peer(file)
        print(f"{peer.__name__}\t{len(files) / (time.perf_counter() - start)}")


if __name__ == "__main__":
    main()
