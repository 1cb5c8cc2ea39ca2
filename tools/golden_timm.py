"""Makes the folders of timm's and open_clip's towers in verify/goldens/hub, as golden_transformers.py makes those of transformers.

Needs timm and open_clip_torch beside torch, which the tests do not. Run: python tools/golden_timm.py
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import open_clip
import timm
import torch
from open_clip.model import resize_pos_embed
from safetensors.torch import save_file
from timm.models._hub import save_for_hf

from golden_transformers import HUB, picture, pull_back, randomise

SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 1.25, "patch_size": 8, "img_size": 32, "num_classes": 3}
SIDES = (48, 40, 24)


def made_by(config: str = "{}") -> dict[str, str]:
    return {"torch": torch.__version__, "timm": timm.__version__, "open_clip": open_clip.__version__, "config": config}


def as_stored(tensors: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().to(dtype).contiguous() for name, tensor in tensors.items()}


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    none = lambda p: torch.zeros(p.shape) if p.grad is None else p.grad
    return {name: none(parameter) for name, parameter in model.named_parameters()}


class Tower:
    """A model in f64 with what its library makes of images: features, pooled output, blocks, other sizes, and its folder."""

    def __init__(self, family: str, model: torch.nn.Module, dtype: torch.dtype, files: tuple[str, str]):
        self.family, self.dtype, self.folder = family, dtype, HUB / family
        self.config_file, self.weights_file = files
        torch.manual_seed(len(family))
        self.model = model.to(torch.float64).eval()
        randomise(self.model, dtype)

    def write(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.write_config()
        state = {n: t for n, t in self.model.state_dict().items() if t.numel() > 0}
        save_file(as_stored(state, self.dtype), self.folder / self.weights_file, metadata={"format": "pt"})
        blocks: list[torch.Tensor] = []
        hooks = [block.register_forward_hook(lambda _, __, y: blocks.append(y)) for block in self.blocks()]
        pixels = picture(len(self.family))
        features = self.features(self.model, pixels)
        for hook in hooks:
            hook.remove()
        values = {f"value.vision.blocks.{i}": block for i, block in enumerate(blocks)} | {"value.vision.features": features}
        values |= {"input.images": pixels, "input.cotangent": pull_back(features)}
        save_file(as_stored(values), self.folder / "expected.safetensors", metadata=made_by())
        self.write_gradients("gradients")
        self.model.zero_grad()
        pixels = picture(100 + len(self.family))
        pooled = self.pooled(self.features(self.model, pixels))
        values = {"input.images": pixels, "input.cotangent": pull_back(pooled), "value.pooled": pooled}
        save_file(as_stored(values), self.folder / "pooled.safetensors", metadata=made_by())
        self.write_gradients("pooled")
        values = {}
        for side in SIDES:
            pixels = picture(side, side)
            values |= {f"{side}/input.images": pixels, f"{side}/value.last": self.features(self.at_size(side), pixels)}
        cases = json.dumps({"cases": {str(side): {} for side in SIDES}})
        save_file(as_stored(values), self.folder / "resized.safetensors", metadata=made_by(cases))

    def write_gradients(self, name: str) -> None:
        (self.folder / name).mkdir()
        gradients = {n: t for n, t in gradients_of(self.model).items() if t.numel() > 0}
        save_file(as_stored(gradients), self.folder / name / self.weights_file, metadata={"format": "pt"})
        shutil.copy(self.folder / self.config_file, self.folder / name / self.config_file)


class Timm(Tower):
    def __init__(self, family: str, architecture: str, dtype: torch.dtype):
        super().__init__(family, timm.create_model(architecture, **SIZES), dtype, ("config.json", "model.safetensors"))

    def write_config(self) -> None:
        save_for_hf(self.model, str(self.folder), model_args=SIZES, safe_serialization=False)
        (self.folder / "pytorch_model.bin").unlink()

    def blocks(self):
        return self.model.blocks

    def features(self, model, pixels: torch.Tensor) -> torch.Tensor:
        return model.forward_features(pixels)

    def pooled(self, features: torch.Tensor) -> torch.Tensor:
        return self.model.forward_head(features, pre_logits=True)

    def at_size(self, side: int):
        model = copy.deepcopy(self.model)
        model.set_input_size(img_size=side)
        return model


class OpenClip(Tower):
    TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
    VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 1.25}

    def __init__(self, family: str, dtype: torch.dtype):
        files = ("open_clip_config.json", "open_clip_model.safetensors")
        super().__init__(family, self.of_size(32), dtype, files)

    def of_size(self, side: int):
        vision = self.VISION | {"image_size": side}
        return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=self.TEXT, quick_gelu=True).to(torch.float64).eval()

    def write_config(self) -> None:
        images = {"size": 32, "mode": "RGB", "mean": [0.48145466, 0.4578275, 0.40821073],
                  "std": [0.26862954, 0.26130258, 0.27577711], "interpolation": "bicubic", "resize_mode": "shortest"}
        model = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": self.VISION, "text_cfg": self.TEXT}
        text = json.dumps({"model_cfg": model, "preprocess_cfg": images}, indent=2)
        (self.folder / self.config_file).write_text(text + "\n")

    def blocks(self):
        return self.model.visual.transformer.resblocks

    def features(self, model, pixels: torch.Tensor) -> torch.Tensor:
        visual = model.visual
        return visual.ln_post(visual.transformer(visual._embeds(pixels)))

    def pooled(self, features: torch.Tensor) -> torch.Tensor:
        return self.model.visual._global_pool(features)[0]

    def at_size(self, side: int):
        model, state = self.of_size(side), dict(self.model.state_dict())
        resize_pos_embed(state, model)
        model.load_state_dict(state)
        return model


def main() -> None:
    half, brain = torch.float16, torch.bfloat16
    Timm("timm-vit", "vit_small_patch16_224", half).write()
    Timm("timm-dinov2-registers", "vit_small_patch14_reg4_dinov2", torch.float32).write()
    Timm("timm-dinov3", "vit_small_plus_patch16_dinov3", torch.float32).write()
    Timm("timm-clip", "vit_base_patch32_clip_quickgelu_224", half).write()
    Timm("timm-siglip", "vit_base_patch16_siglip_224", brain).write()
    OpenClip("open-clip", brain).write()


if __name__ == "__main__":
    main()
