"""The whole way at small scale: backbones in, three stages, backbones out, the same answers in transformers.

    python -m pip install torch transformers safetensors pillow
    python tools/rehearsal.py [FOLDER]

A random tower in AIMv2's form and a random decoder in Qwen2's form with a tokeniser of its own are written as their library
writes them; pictures with conversations stand beside them, some of them wide, and some conversations about none. `keel train`
refines them in three stages, the last on pictures cut into tiles, two samples to a sequence, with a contrast beside text;
`keel export` writes them back, and transformers loads what was written. Both then answer questions about pictures and about two
at once, greedily, transformers on the tiles of its own processor: every answer must be the same, token by token, as far as it goes or for 24
tokens. Exits with an error where one is not.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from transformers import Aimv2VisionConfig, Aimv2VisionModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.image_utils import SizeDict
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from golden_chat import tokeniser

ROOT = Path(__file__).resolve().parent.parent
SIDE, PATCH, WIDTH = 64, 8, 64
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "yellow": (240, 210, 40)}
# Tokens of an answer that are compared.
MOST = 24
SHAPES = ["square", "circle", "triangle"]
# Tiles of a picture, at most.
TILES = 4


def draw(shape: str, colour: str, at: tuple[int, int], width: int) -> Image.Image:
    picture = Image.new("RGB", (width, SIDE), (255, 255, 255))
    pen, (x, y), fill = ImageDraw.Draw(picture), at, COLOURS[colour]
    match shape:
        case "square":
            pen.rectangle([x - 14, y - 14, x + 14, y + 14], fill=fill)
        case "circle":
            pen.ellipse([x - 16, y - 16, x + 16, y + 16], fill=fill)
        case _:
            pen.polygon([(x, y - 18), (x - 16, y + 14), (x + 16, y + 14)], fill=fill)
    return picture


def pairs(folder: Path) -> list[tuple[list[Path], str]]:
    """Pictures and their conversations in LLaVA's form, one a line; returns what is asked in the end, and of which pictures."""
    folder.mkdir()
    generator = numpy.random.default_rng(7)
    lines, asked = [], []
    for number in range(240):
        shape, colour = SHAPES[number % 3], list(COLOURS)[number // 3 % 4]
        width = 2 * SIDE if number % 4 == 1 else SIDE
        at = tuple(int(x) for x in generator.integers(20, [width - 20, 44]))
        name = f"{number:03}.png"
        draw(shape, colour, at, width).save(folder / name)
        # A contrast needs answers that tell one picture from another.
        question, answer = [
            ("<image>\nWhat is this?", f"a {colour} {shape} at {at[0]} {at[1]}"),
            ("<image>\nWhich colour is it?", f"{colour} like the {shape} at {at[0]} {at[1]}"),
            ("<image>\nWhich shape is it?", f"{shape} in {colour} at {at[0]} {at[1]}"),
        ][generator.integers(3)]
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        lines.append(json.dumps({"id": number, "image": name, "conversations": turns}))
        if number % 10 == 0:
            turns = [{"from": "human", "value": f"What comes after {number}?"}, {"from": "gpt", "value": f"{number + 1}"}]
            lines.append(json.dumps({"id": f"text {number}", "conversations": turns}))
        if number < 12:
            asked.append(([folder / name], question.removeprefix("<image>\n")))
    names = [folder / f"{number:03}.png" for number in range(4)]
    asked.append((names[:2], "First <image>, then <image>\nWhich is a square?"))
    asked.append((names[2:], "What are these?"))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return asked


def backbones(folder: Path) -> None:
    torch.manual_seed(3)
    tower = Aimv2VisionConfig(
        hidden_size=WIDTH, intermediate_size=160, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
        patch_size=PATCH, use_head=False,
    )
    Aimv2VisionModel(tower).save_pretrained(folder / "tower")
    words = tokeniser()
    decoder = Qwen2Config(
        vocab_size=words.get_vocab_size(with_added_tokens=True), hidden_size=WIDTH, intermediate_size=160,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
        max_position_embeddings=512,
    )
    Qwen2ForCausalLM(decoder).to(torch.bfloat16).save_pretrained(folder / "decoder")
    words.save(str(folder / "decoder" / "tokenizer.json"))


def keel(folder: Path, *arguments: str) -> str:
    program = ROOT / "target" / "release" / "keel"
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"keel {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    return done.stdout


def train(folder: Path) -> None:
    steps = {"warm-up": 40, "fine-grained": 60, "world-knowledge": 200}
    sets = [f"stage.{stage}.steps={count}" for stage, count in steps.items()]
    sets += [f"stage.{stage}.data.pairs=2" for stage in steps]
    last = {"tiles": TILES, "pack": 2, "tokens": 320}
    sets += [f"stage.world-knowledge.{key}={value}" for key, value in last.items()]
    # The last stage is the one that users train themselves.
    sets.append("stage.target.steps=1")
    more = [part for text in sets for part in ("--set", text)]
    keel(
        folder, "train", "--device", "cpu", "--vision", "tower", "--language", "decoder", "--data",
        "pairs/pairs.jsonl", "--out", "run", "--no-evaluation", *more,
    )


def answers_of_transformers(folder: Path, checkpoint: str, asked: list[tuple[list[Path], str]]) -> list[tuple[str, bool]]:
    """Each answer, and whether it came to its end within MOST tokens."""
    for part in ("vision", "language", "whole"):
        print(keel(folder, "export", checkpoint, "--part", part, "--out", part, "--dtype", "f32").strip())
    tower, seen = Aimv2VisionModel.from_pretrained(folder / "vision", output_loading_info=True)
    decoder, read = Qwen2ForCausalLM.from_pretrained(folder / "language", output_loading_info=True)
    for info in (seen, read):
        odd = {kind: names for kind, names in info.items() if names}
        assert not odd, f"transformers loads the export with {odd}"
    words = PreTrainedTokenizerFast(tokenizer_file=str(folder / "language" / "tokenizer.json"))
    whole = load_file(folder / "whole" / "model.safetensors")
    settings = json.loads((folder / "vision" / "preprocessor_config.json").read_text())
    mean, deviation = (torch.tensor(settings[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    image_id, end = (words.convert_tokens_to_ids(name) for name in ("<IMG_CONTEXT>", "<|im_end|>"))
    count = (SIDE // PATCH // 2) ** 2
    processor = GotOcr2ImageProcessorPil()
    answers = []
    with torch.no_grad():
        for paths, question in asked:
            opened = [Image.open(path).convert("RGB") for path in paths]
            if len(opened) == 1:
                size = SizeDict(height=SIDE, width=SIDE)
                picture = numpy.array(opened[0])
                cut = processor.crop_image_to_patches(picture, 1, TILES, use_thumbnail=True, patch_size=size, resample=3)
                question = f"<img>{'<IMG_CONTEXT>' * (len(cut) * count)}</img>\n{question}"
            else:
                # Of several each is whole, stretched as the whole picture beside tiles is.
                cut = [numpy.array(one.resize((SIDE, SIDE), resample=3)) for one in opened]
                if "<image>" not in question:
                    question = "<image>\n" * len(cut) + question
                question = question.replace("<image>", f"<img>{'<IMG_CONTEXT>' * count}</img>")
            pixels = torch.from_numpy(numpy.stack(cut)).permute(0, 3, 1, 2) / 255.0
            features = tower((pixels - mean) / deviation).last_hidden_state
            side, most = SIDE // PATCH // 2, len(cut)
            grid = features.view(most, side, 2, side, 2, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4 * WIDTH)
            x = torch.nn.functional.layer_norm(grid, [4 * WIDTH], whole["mlp1.0.weight"], whole["mlp1.0.bias"], 1e-5)
            x = torch.nn.functional.gelu(x @ whole["mlp1.1.weight"].T + whole["mlp1.1.bias"])
            x = x @ whole["mlp1.3.weight"].T + whole["mlp1.3.bias"]
            text = (
                "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
                f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
            )
            ids = words.encode(text, add_special_tokens=False)
            answer = []
            while len(answer) < MOST:
                embedded = decoder.get_input_embeddings()(torch.tensor(ids + answer))
                embedded[torch.tensor(ids + answer) == image_id] = x
                answer.append(int(decoder(inputs_embeds=embedded[None]).logits[0, -1].argmax()))
                if answer[-1] == end:
                    break
            answers.append((words.decode(answer, skip_special_tokens=True), answer[-1] == end))
    return answers


def main() -> None:
    subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        folder.mkdir(exist_ok=True)
        asked = pairs(folder / "pairs")
        backbones(folder)
        train(folder)
        # After the third stage, before the target's fresh connector.
        checkpoint = next((folder / "run" / "checkpoints").glob("*-world-knowledge.safetensors"))
        theirs = answers_of_transformers(folder, str(checkpoint), asked)
        wrong = 0
        for (paths, question), (answer, is_whole) in zip(asked, theirs):
            ours = keel(folder, "caption", str(checkpoint), *map(str, paths), "--question", question).strip()
            is_same = ours == answer if is_whole else ours.startswith(answer)
            wrong += not is_same
            shown = " ".join(path.name for path in paths)
            print(f"{shown:<16}{question!r:<24} {ours[:40]!r}" + ("" if is_same else f", transformers {answer!r}"))
        if wrong:
            sys.exit(f"{wrong} of {len(asked)} answers differ")
        print(f"{len(asked)} of {len(asked)} answers are the same in transformers")


if __name__ == "__main__":
    main()
