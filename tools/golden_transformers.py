"""Makes verify/goldens/hub: a small random model of every family that Keel reads, saved as its own library saves it.

Each folder holds config.json and model.safetensors, and expected.safetensors with an input, a cotangent of the last value
and the hidden states that transformers computes from the input in f64 (its norms and softmax round to f32 even so). In
resized.safetensors are images of other sizes with what the tower makes of them, its positions scaled. Families that pool
their tokens have pooled.safetensors with an image and its pooled output, and pooled/ with the gradients of that. In
gradients/ lies the same folder once more with the gradient of every parameter in its place, so that what reads weights
reads gradients. Families whose authors publish other names have a folder with those names too, made from the same model by
renaming. Run: python tools/golden_transformers.py (versions are recorded in the files).
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    Aimv2VisionConfig, Aimv2VisionModel, CLIPVisionConfig, CLIPVisionModel, DeiTConfig, DeiTModel, DINOv3ViTConfig, DINOv3ViTModel,
    Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel, IJepaConfig,
    IJepaModel, InternVLVisionConfig, InternVLVisionModel, LlamaConfig, LlamaForCausalLM, MetaClip2VisionConfig, MetaClip2VisionModel, MistralConfig,
    MistralForCausalLM,
    Phi3Config, Phi3ForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM, Siglip2VisionConfig, Siglip2VisionModel,
    SiglipVisionConfig, SiglipVisionModel, ViTConfig, ViTMAEConfig, ViTMAEModel, ViTModel,
)

HUB = Path(__file__).resolve().parent.parent / "verify/goldens/hub"
SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
PICTURE = {"image_size": 32, "patch_size": 8}


def randomise(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Values that tell every parameter from another, representable in `dtype`."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, dtype=torch.float64)
            if parameter.dim() >= 2 and "pos" not in name and "token" not in name:
                value = noise * (parameter.numel() / parameter.shape[0]) ** -0.5
            elif name.endswith("bias"):
                value = 0.2 * noise
            elif "embed" in name or "token" in name or "pos" in name:
                value = 0.5 * noise
            else:
                value = 1.0 + 0.2 * noise
            parameter.copy_(value.to(dtype).to(parameter.dtype))


def save(family: str, model, dtype: torch.dtype, expected: dict[str, torch.Tensor]) -> Path:
    """One folder. `model` is in f64, holds values of `dtype` and has its gradients."""
    folder = HUB / family
    shutil.rmtree(folder, ignore_errors=True)
    copy.deepcopy(model).to(dtype).save_pretrained(folder)
    for extra in folder.glob("generation_config.json"):
        extra.unlink()
    tensors = {name: tensor.detach().contiguous() for name, tensor in expected.items()}
    tensors = {n: t.to(torch.float32 if t.is_floating_point() else torch.int32) for n, t in tensors.items()}
    made_by = {"torch": torch.__version__, "transformers": transformers.__version__, "config": "{}"}
    save_file(tensors, folder / "expected.safetensors", metadata=made_by)
    save_gradients(model, folder, "gradients")
    return folder


def save_gradients(model: torch.nn.Module, folder: Path, name: str) -> None:
    gradients = {
        name: torch.zeros(parameter.shape) if parameter.grad is None else parameter.grad.to(torch.float32)
        for name, parameter in model.named_parameters()
    }
    (folder / name).mkdir()
    save_file(gradients, folder / name / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(folder / "config.json", folder / name / "config.json")


def save_pooled(family: str, model, folder: Path) -> None:
    """What the tower makes of an image as one row, and the gradients of that."""
    model.zero_grad()
    pixels = picture(100 + len(family))
    output = model(**seen(family, pixels))
    # Classifiers on a plain ViT read its class token, whether or not it has a pooler.
    pooled = output.last_hidden_state[:, 0] if family.startswith(("vit", "deit")) else output.pooler_output
    tensors = {"input.images": pixels, "input.cotangent": pull_back(pooled), "value.pooled": pooled}
    tensors = {name: tensor.detach().to(torch.float32).contiguous() for name, tensor in tensors.items()}
    made_by = {"torch": torch.__version__, "transformers": transformers.__version__, "config": "{}"}
    save_file(tensors, folder / "pooled.safetensors", metadata=made_by)
    save_gradients(model, folder, "pooled")


def pull_back(value: torch.Tensor) -> torch.Tensor:
    """Leaves the gradients of ⟨value, cotangent⟩ in the parameters; gives the cotangent."""
    cotangent = torch.randn(value.shape).to(torch.float64)
    value.backward(cotangent)
    return cotangent


def picture(seed: int, side: int = 32) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(1, 3, side, side).to(torch.float64)


def seen(family: str, pixels: torch.Tensor) -> dict:
    """The arguments that show a model an image of any size."""
    if "naflex" in family:
        # (row, column, colour) within a patch, as the library's image processor lays images out.
        grid = pixels.shape[-1] // 8
        rows = pixels.reshape(1, 3, grid, 8, grid, 8).permute(0, 2, 4, 3, 5, 1).reshape(1, grid * grid, 192)
        return {
            "pixel_values": rows,
            "pixel_attention_mask": torch.ones(1, grid * grid, dtype=torch.int64),
            "spatial_shapes": torch.tensor([[grid, grid]]),
        }
    if family == "vit-mae":
        # In order, not shuffled; and none is masked.
        order = torch.arange((pixels.shape[-1] // 8) ** 2).unsqueeze(0)
        return {"pixel_values": pixels, "noise": order, "interpolate_pos_encoding": True}
    scales = family in ("clip", "metaclip2", "siglip", "vit", "ijepa", "deit")
    return {"pixel_values": pixels} | ({"interpolate_pos_encoding": True} if scales else {})


def at_other_sizes(family: str, model, final) -> dict[str, torch.Tensor]:
    """More patches, an odd number of them, and fewer."""
    tensors = {}
    for side in (48, 40, 24):
        pixels = picture(side, side)
        with torch.no_grad():
            last = model(**seen(family, pixels)).last_hidden_state
            last = last if final is None else final(model)(last)
        tensors |= {f"{side}/input.images": pixels, f"{side}/value.last": last}
    return tensors


def vision(family: str, model, dtype: torch.dtype, final=None, kept: int = 3) -> Path:
    """`final` turns what transformers calls the last hidden state into what Keel calls features."""
    pixels = picture(len(family))
    # MAE's positions stay what they are in pre-training; here they learn.
    model = model.to(torch.float64).eval().requires_grad_()
    randomise(model, dtype)
    blocks: list[torch.Tensor] = []
    encoder = getattr(model, "encoder", getattr(model, "model", model))
    layers = encoder.layers if hasattr(encoder, "layers") else encoder.layer
    for layer in layers:
        layer.register_forward_hook(lambda _, __, y: blocks.append(y[0] if isinstance(y, tuple) else y))
    last = model(**seen(family, pixels)).last_hidden_state
    features = last if final is None else final(model)(last)
    values = {f"value.vision.blocks.{i}": block for i, block in enumerate(blocks)}
    if kept == 3:
        values["value.vision.features"] = features
    cotangent = pull_back(features if kept == 3 else blocks[-1])
    folder = save(family, model, dtype, {"input.images": pixels, "input.cotangent": cotangent} | values)
    if not family.startswith("internvl") and family not in ("dinov2-giant", "dinov3-gated", "ijepa"):  # which pool nothing, or as their siblings
        save_pooled(family, model, folder)
    if family != "aimv2":  # transformers does not scale its positions
        tensors = {name: tensor.to(torch.float32).contiguous() for name, tensor in at_other_sizes(family, model, final).items()}
        cases = json.dumps({"cases": {name.split("/")[0]: {} for name in tensors}})
        made_by = {"torch": torch.__version__, "transformers": transformers.__version__, "config": cases}
        save_file(tensors, folder / "resized.safetensors", metadata=made_by)
    return folder


def language(family: str, model, dtype: torch.dtype) -> Path:
    torch.manual_seed(len(family))
    tokens = torch.randint(0, 64, (2, 7))
    model = model.to(torch.float64).eval()
    randomise(model, dtype)
    blocks: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, __, y: blocks.append(y[0] if isinstance(y, tuple) else y))
    hidden = model.model(input_ids=tokens).last_hidden_state
    logits = model.lm_head(hidden)
    values = {f"value.language.blocks.{i}": block for i, block in enumerate(blocks)}
    values |= {"value.language.hidden": hidden, "value.logits": logits}
    return save(family, model, dtype, {"input.tokens": tokens, "input.cotangent": pull_back(logits)} | values)


def renamed(source: Path, family: str, config: dict, rename) -> None:
    """The same model under its authors' names. `rename` gives the new name and the tensors stacked there."""
    folder = HUB / family
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tensors = load_file(source / "model.safetensors")
    stacked: dict[str, list] = {}
    for name in sorted(tensors):
        new, order = rename(name)
        if new is not None:
            stacked.setdefault(new, []).append((order, tensors[name]))
    result = {}
    for name, pieces in stacked.items():
        pieces.sort(key=lambda piece: piece[0])
        result[name] = torch.cat([tensor for _, tensor in pieces]).contiguous()
    save_file(result, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def replace(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def row_order(name: str) -> int:
    """Where a projection of queries, keys or values stands in the stacked one; 0 for anything else."""
    return next((place for place, key in enumerate(("q_proj", "k_proj", "v_proj")) if key in name), 0)


def aimv2_name(name: str):
    if name.startswith("head."):
        return None, 0
    place = row_order(name)
    name = replace(name, {
        "embeddings.patch_embed.": "preprocessor.patchifier.proj.",
        "embeddings.rms_norm.": "preprocessor.patchifier.norm.",
        "embeddings.position_embedding.weight": "preprocessor.pos_embed",
        "encoder.layers.": "trunk.blocks.", "rms_norm1": "norm_1", "rms_norm2": "norm_2",
        "attention.q_proj": "attn.qkv", "attention.k_proj": "attn.qkv", "attention.v_proj": "attn.qkv",
        "attention.out_proj": "attn.proj", "ffn.gate_proj": "mlp.fc1", "ffn.up_proj": "mlp.fc3",
        "ffn.down_proj": "mlp.fc2",
    })
    return ("trunk.post_trunk_norm.weight" if name == "rms_norm.weight" else name), place


def internvit_name(name: str):
    place = row_order(name)
    return replace(name, {
        "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
        "embeddings.position_embeddings": "embeddings.position_embedding",
        "embeddings.cls_token": "embeddings.class_embedding",
        "encoder.layer.": "encoder.layers.", "layernorm_before": "norm1", "layernorm_after": "norm2",
        "attention.q_proj": "attn.qkv", "attention.k_proj": "attn.qkv", "attention.v_proj": "attn.qkv",
        "attention.q_norm": "attn.q_norm", "attention.k_norm": "attn.k_norm",
        "attention.projection_layer": "attn.proj", "lambda_1": "ls1", "lambda_2": "ls2",
    }), place


def main() -> None:
    HUB.mkdir(parents=True, exist_ok=True)
    half, brain = torch.float16, torch.bfloat16
    aimv2 = vision("aimv2", Aimv2VisionModel(Aimv2VisionConfig(**SIZES, **PICTURE, use_head=True)), brain)
    own = SIZES | PICTURE | {
        "model_type": "aimv2", "architectures": ["AIMv2Model"], "num_channels": 3, "rms_norm_eps": 1e-5,
        "attention_dropout": 0.0, "projection_dropout": 0.0, "qkv_bias": False, "use_bias": False,
        "torch_dtype": "bfloat16",
    }
    renamed(aimv2, "sailvit", own, aimv2_name)
    norm = lambda model: model.post_layernorm
    vision("clip", CLIPVisionModel(CLIPVisionConfig(**SIZES, **PICTURE)), half, norm)
    vision("metaclip2", MetaClip2VisionModel(MetaClip2VisionConfig(**SIZES, **PICTURE)), torch.float32, norm)
    vision("siglip", SiglipVisionModel(SiglipVisionConfig(**SIZES, **PICTURE)), half)
    naflex = Siglip2VisionConfig(**SIZES, patch_size=8, num_patches=16)
    vision("siglip2-naflex", Siglip2VisionModel(naflex), brain)
    internvl = InternVLVisionConfig(**SIZES, image_size=[32, 32], patch_size=[8, 8], attention_bias=True)
    internvit = vision("internvl", InternVLVisionModel(internvl), brain, kept=2)
    own = SIZES | PICTURE | {
        "model_type": "intern_vit_6b", "architectures": ["InternVisionModel"], "num_channels": 3, "qkv_bias": True,
        "qk_normalization": False, "norm_type": "layer_norm", "layer_norm_eps": 1e-6, "hidden_act": "gelu",
        "drop_path_rate": 0.1, "initializer_factor": 0.1, "torch_dtype": "bfloat16", "use_flash_attn": True,
    }
    renamed(internvit, "internvit", own, internvit_name)
    # The form of the 6B tower: RMS norms, and norms of queries and keys over all heads.
    six = InternVLVisionConfig(**SIZES, image_size=[32, 32], patch_size=[8, 8], norm_type="rms_norm", use_qk_norm=True)
    internvit = vision("internvl-6b", InternVLVisionModel(six), brain, kept=2)
    renamed(internvit, "internvit-6b", own | {"qkv_bias": False, "qk_normalization": True, "norm_type": "rms_norm"}, internvit_name)
    sizes = {k: v for k, v in SIZES.items() if k != "intermediate_size"}
    vision("dinov2", Dinov2Model(Dinov2Config(**sizes, **PICTURE, mlp_ratio=2)), half)
    vision("dinov2-giant", Dinov2Model(Dinov2Config(**sizes, **PICTURE, mlp_ratio=2, use_swiglu_ffn=True)), half)
    registers = Dinov2WithRegistersConfig(**sizes, **PICTURE, mlp_ratio=2, num_register_tokens=3)
    vision("dinov2-registers", Dinov2WithRegistersModel(registers), half)
    dinov3 = SIZES | PICTURE | {"num_register_tokens": 3}
    vision("dinov3", DINOv3ViTModel(DINOv3ViTConfig(**dinov3)), torch.float32)
    vision("dinov3-gated", DINOv3ViTModel(DINOv3ViTConfig(**dinov3, use_gated_mlp=True, hidden_act="silu")), brain)
    vision("deit", DeiTModel(DeiTConfig(**SIZES, **PICTURE)), half)
    vision("vit", ViTModel(ViTConfig(**SIZES, **PICTURE)), half)
    mae = ViTMAEConfig(**SIZES, **PICTURE, mask_ratio=0.0)
    vision("vit-mae", ViTMAEModel(mae), torch.float32)
    vision("ijepa", IJepaModel(IJepaConfig(**SIZES, **PICTURE)), brain)
    decoder = SIZES | {"vocab_size": 64, "num_key_value_heads": 1, "max_position_embeddings": 128}
    rope = {"rope_theta": 1e6, "rope_type": "default"}
    language("qwen2", Qwen2ForCausalLM(Qwen2Config(**decoder, rope_parameters=rope, tie_word_embeddings=True)), brain)
    explicit = {"head_dim": 24, "tie_word_embeddings": False, "rope_parameters": rope}
    language("qwen3", Qwen3ForCausalLM(Qwen3Config(**decoder, **explicit)), torch.float32)
    # SmolLM2's proportions: three queries to a pair of keys and values, and tied embeddings.
    smol = decoder | {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
    rope = {"rope_theta": 1e5, "rope_type": "default"}
    language("llama", LlamaForCausalLM(LlamaConfig(**smol, rope_parameters=rope, tie_word_embeddings=True)), brain)
    # Sequences of 7 tokens do not fill the window.
    window = {"sliding_window": 8, "head_dim": 24, "rope_parameters": rope}
    language("mistral", MistralForCausalLM(MistralConfig(**decoder, **window)), half)
    phi3 = Phi3Config(**decoder | {"num_key_value_heads": 2}, sliding_window=128, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    language("phi3", Phi3ForCausalLM(phi3), brain)


if __name__ == "__main__":
    main()
