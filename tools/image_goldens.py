"""Makes verify/goldens/pictures.safetensors: images encoded, decoded, scaled and laid over a colour by Pillow.

Needs Pillow 12.2 or older (13 scales in another order of passes), numpy and safetensors. Run from the repository root.
"""

import io
from pathlib import Path

import numpy as np
import PIL
from PIL import Image
from safetensors.numpy import save

TARGET = Path("verify/goldens/pictures.safetensors")
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Width and height before and after: up, down, mixed, one side kept, to one pixel, by more than the filter is wide.
SIZES = [
    ((23, 17), (9, 31)),
    ((23, 17), (23, 8)),
    ((23, 17), (40, 17)),
    ((40, 30), (28, 28)),
    ((61, 7), (3, 5)),
    ((5, 64), (1, 1)),
    ((1, 1), (4, 3)),
]


def smooth(random, width, height):
    """An image that lossy formats keep well: broad waves of colour, a disc of opacity."""
    y, x = np.mgrid[0:height, 0:width]
    phases = random.uniform(0, 6, 3)
    colour = [127 + 120 * np.sin(x / 7 + phase) * np.cos(y / 9 + phase) for phase in phases]
    opacity = np.clip(300 - 18 * np.hypot(x - width / 2, y - height / 2), 0, 255)
    return Image.fromarray(np.stack([*colour, opacity], axis=-1).round().astype(np.uint8), "RGBA")


def encoded(picture):
    """Every kind of file that must be readable: name to bytes."""
    rgb = picture.convert("RGB")
    sixteen = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    variants = {
        "png_rgba": (picture, "PNG", {}),
        "png_rgb": (rgb, "PNG", {}),
        "png_grey": (picture.convert("L"), "PNG", {}),
        "png_grey_opacity": (picture.convert("LA"), "PNG", {}),
        "png_grey_16": (sixteen, "PNG", {}),
        "png_bilevel": (picture.convert("1"), "PNG", {}),
        "png_palette": (rgb.quantize(16), "PNG", {}),
        "png_palette_opacity": (picture.quantize(16, method=Image.Quantize.FASTOCTREE), "PNG", {}),
        "webp_lossless_rgb": (rgb, "WEBP", {"lossless": True}),
        "webp_lossless_rgba": (picture, "WEBP", {"lossless": True, "exact": True}),
        "webp_lossy_rgb": (rgb, "WEBP", {"quality": 85}),
        "webp_lossy_rgba": (picture, "WEBP", {"quality": 85}),
        "jpeg": (rgb, "JPEG", {"quality": 90, "subsampling": "4:4:4"}),
        "jpeg_subsampled": (rgb, "JPEG", {"quality": 90, "subsampling": "4:2:0"}),
        "jpeg_progressive": (rgb, "JPEG", {"quality": 90, "progressive": True}),
        "jpeg_grey": (picture.convert("L"), "JPEG", {"quality": 90}),
        "jpeg_stored_rgb": (rgb, "JPEG", {"quality": 95, "keep_rgb": True}),
        "jpeg_cmyk": (rgb.convert("CMYK"), "JPEG", {"quality": 95}),
    }
    for name, (image, kind, options) in variants.items():
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        yield name, stream.getvalue()


def main():
    major, minor = (int(part) for part in PIL.__version__.split(".")[:2])
    assert (major, minor) <= (12, 2), f"Pillow {PIL.__version__} scales in another order; install 12.2"
    random = np.random.default_rng(20250702)
    tensors = {}
    for name, data in encoded(smooth(random, 37, 26)):
        tensors[f"file.{name}"] = np.frombuffer(data, np.uint8)
        image = Image.open(io.BytesIO(data))
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        tensors[f"pixels.{name}"] = np.asarray(image.convert("RGBA"))
    frames = [smooth(random, 8, 8) for _ in range(2)]
    for kind in ("PNG", "WEBP"):
        stream = io.BytesIO()
        frames[0].save(stream, kind, save_all=True, append_images=frames[1:], duration=100)
        tensors[f"animated.{kind.lower()}"] = np.frombuffer(stream.getvalue(), np.uint8)
    for before, after in SIZES:
        for kind, channels in (("opaque", 3), ("translucent", 4)):
            noise = Image.fromarray(random.integers(0, 256, (before[1], before[0], channels), dtype=np.uint8))
            case = f"{kind}.{before[0]}x{before[1]}.{after[0]}x{after[1]}"
            tensors[f"input.{case}"] = np.asarray(noise.convert("RGBA"))
            for name, method in FILTERS.items():
                tensors[f"{name}.{case}"] = np.asarray(noise.resize(after, method).convert("RGBA"))
            if channels == 4 and before == (23, 17):
                over = Image.new("RGB", noise.size, (250, 3, 100))
                over.paste(noise, mask=noise)
                tensors[f"flattened.{case}"] = np.asarray(over.convert("RGBA"))
    TARGET.write_bytes(save({k: np.ascontiguousarray(v) for k, v in tensors.items()}, {"pillow": PIL.__version__}))
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
