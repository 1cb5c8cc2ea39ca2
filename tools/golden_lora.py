"""Makes verify/goldens/hub/*/lora: adapters as PEFT saves them, and what PEFT computes with them.

For each of two models of the hub: adapter_config.json and adapter_model.safetensors, with random numbers in A and in B; in
gradients/ the same files with the gradient of every adapter in its place; and expected.safetensors with an input, a cotangent
of the last value and the values that PEFT computes in f64, the base frozen. Run after golden_transformers.py:
python tools/golden_lora.py (needs peft; versions are recorded in the files).
"""

from __future__ import annotations

import shutil
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel, Qwen2ForCausalLM

HUB = Path(__file__).resolve().parent.parent / "verify/goldens/hub"


def save(family: str, model, run, inputs: dict[str, torch.Tensor], config: LoraConfig) -> None:
    """`run` gives values by the names that Keel gives them; the last goes backward."""
    torch.manual_seed(len(family))
    model = get_peft_model(model.to(torch.float64).eval(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                drawn = torch.randn(parameter.shape, dtype=torch.float64) * parameter.shape[1] ** -0.5
                parameter.copy_(drawn.to(torch.float32).to(torch.float64))
    values = run(model.base_model.model)
    last = list(values.values())[-1]
    cotangent = torch.randn(last.shape).to(torch.float64)
    last.backward(cotangent)
    folder = HUB / family / "lora"
    shutil.rmtree(folder, ignore_errors=True)
    gradients = {
        name.replace(".default.", "."): parameter.grad.to(torch.float32)
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    path = folder / "adapter_model.safetensors"
    tensors = {name: tensor.to(torch.float32).contiguous() for name, tensor in get_peft_model_state_dict(model).items()}
    assert sorted(tensors) == sorted(gradients)
    save_file(tensors, path, metadata={"format": "pt"})
    text = (folder / "adapter_config.json").read_text().replace(str(HUB), "hub")
    (folder / "adapter_config.json").write_text(text + "\n")
    (folder / "gradients").mkdir()
    save_file(gradients, folder / "gradients" / path.name, metadata={"format": "pt"})
    shutil.copy(folder / "adapter_config.json", folder / "gradients")
    expected = {f"input.{name}": tensor for name, tensor in inputs.items()} | {"input.cotangent": cotangent}
    expected |= {f"value.{name}": tensor for name, tensor in values.items()}
    expected = {name: tensor.detach().contiguous() for name, tensor in expected.items()}
    expected = {n: t.to(torch.float32 if t.is_floating_point() else torch.int32) for n, t in expected.items()}
    made_by = {"peft": peft.__version__, "torch": torch.__version__, "transformers": transformers.__version__, "config": "{}"}
    save_file(expected, folder / "expected.safetensors", metadata=made_by)


def main() -> None:
    torch.manual_seed(1)
    tokens = torch.randint(0, 64, (2, 7))
    decoder = Qwen2ForCausalLM.from_pretrained(HUB / "qwen2", dtype=torch.float32)

    def run_decoder(model):
        hidden = model.model(input_ids=tokens).last_hidden_state
        return {"language.hidden": hidden, "logits": model.lm_head(hidden)}

    targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    save("qwen2", decoder, run_decoder, {"tokens": tokens}, LoraConfig(r=3, lora_alpha=6, target_modules=targets))
    pixels = torch.randn(1, 3, 32, 32).to(torch.float64)
    tower = CLIPVisionModel.from_pretrained(HUB / "clip", dtype=torch.float32)

    def run_tower(model):
        return {"vision.features": model.post_layernorm(model(pixel_values=pixels).last_hidden_state)}

    # Of the second block alone, of an odd rank, with a scale of one.
    config = LoraConfig(r=5, lora_alpha=5, target_modules=["k_proj", "out_proj", "fc1", "fc2"], layers_to_transform=[1],
                        layers_pattern="layers")
    save("clip", tower, run_tower, {"images": pixels}, config)
    for family in ("qwen2", "clip"):
        files = load_file(HUB / family / "lora" / "adapter_model.safetensors")
        print(family, len(files), "tensors")


if __name__ == "__main__":
    main()
