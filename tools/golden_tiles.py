"""Makes verify/goldens/tiles.safetensors: grids of images of many sizes, and some images cut, by transformers.

Needs torch, transformers with its Pillow backend, Pillow 12.2 or older, numpy and safetensors. Run from the repository root.
`grids` i32 [N, 5] holds width, height, most tiles, columns, rows for tiles of 16 pixels; `<case>/input.picture` i32 [H, W, 3] and
`<case>/value.tiles` i32 [n, 16, 16, 3] are images and their tiles, the whole image last.
"""

import json

import numpy as np
import PIL
import torch
import transformers
from safetensors.torch import save_file
from transformers.image_utils import SizeDict
from transformers.models.got_ocr2 import image_processing_pil_got_ocr2 as published

SIDE = 16
PICTURES = {"wide": (50, 20, 12), "tall": (23, 61, 6), "square": (40, 40, 4), "small": (9, 12, 6), "thin": (90, 8, 5)}


def main() -> None:
    assert tuple(int(part) for part in PIL.__version__.split(".")[:2]) <= (12, 2), PIL.__version__
    random = np.random.default_rng(20261128)
    grids = []
    for _ in range(600):
        width, height = (int(edge) for edge in random.integers(1, 130, 2))
        most = int(random.integers(2, 13))
        columns, rows = published.get_optimal_tiled_canvas((height, width), (SIDE, SIDE), 1, most)
        grids.append((width, height, most, columns, rows))
    tensors = {"grids/value.grids": torch.tensor(grids, dtype=torch.int32)}
    processor = published.GotOcr2ImageProcessorPil()
    for name, (width, height, most) in PICTURES.items():
        picture = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        tiles = processor.crop_image_to_patches(
            picture, 1, most, use_thumbnail=True, patch_size=SizeDict(height=SIDE, width=SIDE), resample=3
        )
        tensors[f"{name}/input.picture"] = torch.tensor(picture.astype(np.int32))
        tensors[f"{name}/value.tiles"] = torch.tensor(np.stack(tiles).astype(np.int32))
    cases = {"grids": {}} | {name: {"most": most} for name, (_, _, most) in PICTURES.items()}
    made_by = {"transformers": transformers.__version__, "config": json.dumps({"cases": cases})}
    save_file(tensors, "verify/goldens/tiles.safetensors", metadata=made_by)


main()
