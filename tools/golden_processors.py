"""Makes verify/goldens/processors: what transformers' image processors make of images, with the settings they save.

Needs transformers with its Pillow backend, Pillow 12.2 or older, numpy and safetensors. Run from the repository root.
"""

from pathlib import Path

import numpy as np
import PIL
import transformers
from PIL import Image
from safetensors.numpy import save_file
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

FOLDER = Path("verify/goldens/processors")
SIDE = 32
SQUARE = {"height": SIDE, "width": SIDE}
# Of CLIP and AIMv2; of SigLIP; of DINOv2, which cuts its square out of a larger image; of DeiT, which stretches first.
PROCESSORS = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE),
    "siglip": SiglipImageProcessorPil(size=SQUARE),
    "dinov2": BitImageProcessorPil(size={"shortest_edge": 36}, crop_size=SQUARE),
    "deit": DeiTImageProcessorPil(size={"height": 36, "width": 36}, crop_size=SQUARE, resample=3),
    "bilinear": SiglipImageProcessorPil(size=SQUARE, resample=2),
}
# Width and height: upright and lying, larger and smaller than the square, of odd and even difference.
SIZES = [(61, 44), (40, 75), (23, 30), (32, 32), (33, 90)]


def main():
    assert tuple(int(part) for part in PIL.__version__.split(".")[:2]) <= (12, 2), PIL.__version__
    random = np.random.default_rng(20261125)
    tensors = {}
    for width, height in SIZES:
        name = f"{width}x{height}"
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        opaque = np.full((height, width, 1), 255, np.uint8)
        tensors[f"input.{name}"] = np.concatenate([pixels, opaque], axis=-1)
        for kind, processor in PROCESSORS.items():
            made = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
            tensors[f"{kind}.{name}"] = np.ascontiguousarray(made, dtype=np.float32)
    for kind, processor in PROCESSORS.items():
        processor.save_pretrained(FOLDER / kind)
    versions = {"transformers": transformers.__version__, "pillow": PIL.__version__}
    save_file(tensors, FOLDER / "pictures.safetensors", versions)
    print(f"{FOLDER}: {(FOLDER / 'pictures.safetensors').stat().st_size} bytes")


if __name__ == "__main__":
    main()
