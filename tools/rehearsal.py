"""The whole way at small scale: backbones in, three stages, backbones out, the same answers in transformers.

    python -m pip install torch transformers safetensors pillow
    python tools/rehearsal.py [--folder FOLDER] [--vlmevalkit CHECKOUT]

A random tower in AIMv2's form and a random decoder in Qwen2's form with a tokenizer of its own are written as their library
writes them; images with conversations stand beside them, some of them wide, and some conversations about none. `keel train`
refines them in three stages, the last on images cut into tiles, two samples to a sequence, with a contrastive loss beside text;
`keel export` writes them back, and transformers loads what was written. Both then answer questions about images and about two
at once, greedily, transformers on the tiles of its own processor: every answer must be the same, token by token, as far as it goes or for 24
tokens. With a checkout of VLMEvalKit, its `run.py` asks `keel serve` a benchmark of multiple choice, and `keel eval --bench` answers the
same file: the answers and the score must be the same (`tools/kits.py`, which needs openai too). Exits with an error where one is not.
"""

import argparse
import base64
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageDraw
from transformers import Aimv2VisionConfig, Aimv2VisionModel, Qwen2Config, Qwen2ForCausalLM

from assembled import Assembled, loaded
from golden_chat import tokenizer

ROOT = Path(__file__).resolve().parent.parent
SIDE, PATCH, WIDTH = 64, 8, 64
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "yellow": (240, 210, 40)}
# Tokens of an answer that are compared.
MOST = 24
SHAPES = ["square", "circle", "triangle"]
# Tiles of an image, at most.
TILES = 4
# The benchmark's name, its questions and their options.
BENCHMARK, CHOICES = "rehearsal", 24
OPTIONS = dict(zip("ABCD", COLOURS))


def drawn(number: int) -> tuple[str, str, int]:
    """Shape, colour and width of an image."""
    return SHAPES[number % 3], list(COLOURS)[number // 3 % 4], 2 * SIDE if number % 4 == 1 else SIDE


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


def choice(colour: str) -> tuple[str, str]:
    """A question of multiple choice in VLMEvalKit's words, and the text of the right option."""
    options = "".join(f"{letter}. {text}\n" for letter, text in OPTIONS.items())
    words = f"Question: Which is it?\nOptions:\n{options}Please select the correct answer from the options above. \n"
    return f"<image>\n{words}", colour


def pairs(folder: Path) -> list[tuple[list[Path], str]]:
    """Images and their conversations in LLaVA's form, one a line; returns what is asked in the end, and of which images."""
    folder.mkdir()
    generator = numpy.random.default_rng(7)
    lines, asked = [], []
    for number in range(240):
        shape, colour, width = drawn(number)
        at = tuple(int(x) for x in generator.integers(20, [width - 20, 44]))
        name = f"{number:03}.png"
        draw(shape, colour, at, width).save(folder / name)
        # A contrastive loss needs answers that tell one image from another.
        question, answer = [
            ("<image>\nWhat is this?", f"a {colour} {shape} at {at[0]} {at[1]}"),
            ("<image>\nWhich colour is it?", f"{colour} like the {shape} at {at[0]} {at[1]}"),
            ("<image>\nWhich shape is it?", f"{shape} in {colour} at {at[0]} {at[1]}"),
            choice(colour),
        ][generator.integers(4)]
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
    words = tokenizer()
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
    steps = {"warm-up": 40, "fine-grained": 60, "world-knowledge": 300}
    sets = [f"stage.{stage}.steps={count}" for stage, count in steps.items()]
    sets += [f"stage.{stage}.{key}" for stage in steps for key in ("data.samples=2", "max_tokens=192")]
    last = {"max_tiles": TILES, "samples_per_sequence": 2, "max_tokens": 320, "learning_rate": 0.003}
    sets += [f"stage.world-knowledge.{key}={value}" for key, value in last.items()]
    # The last stage is the one that users train themselves.
    sets.append("stage.target.steps=1")
    more = [part for text in sets for part in ("--set", text)]
    keel(
        folder, "train", "--device", "cpu", "--vision", "tower", "--language", "decoder", "--chat", "qwen2.5",
        "--data", "pairs/pairs.jsonl", "--out", "run", "--no-evaluation", *more,
    )


def answers_of_transformers(folder: Path, checkpoint: str, asked: list[tuple[list[Path], str]]) -> list[tuple[str, bool]]:
    """Each answer, and whether it came to its end within MOST tokens."""
    for part in ("vision", "language", "model"):
        print(keel(folder, "export", checkpoint, "--part", part, "--out", part, "--dtype", "f32").strip())
    model = Assembled(folder / "model")
    # The parts alone load as they are, and are those of the whole.
    for kind, part, beside in ((Aimv2VisionModel, "vision", model.tower), (Qwen2ForCausalLM, "language", model.decoder)):
        numbers = beside.state_dict()
        alone = loaded(kind, folder / part).state_dict()
        assert all(torch.equal(value, numbers[name]) for name, value in alone.items()), part
    return [model.answer([Image.open(path) for path in paths], question, MOST) for paths, question in asked]


def evaluate(folder: Path, checkpoint: str, checkout: Path) -> None:
    """VLMEvalKit's evaluation of the served model against `keel eval --bench`, answer by answer."""
    data = folder / "LMUData"
    data.mkdir()
    rows = []
    for number in range(CHOICES):
        shape, colour, width = drawn(number)
        path = folder / "choice.png"
        draw(shape, colour, (24 + number, 32), width).save(path)
        row = {"index": number, "image": base64.b64encode(path.read_bytes()).decode(), "question": "Which is it?"}
        letter = next(letter for letter, text in OPTIONS.items() if text == colour)
        rows.append(row | OPTIONS | {"answer": letter, "category": shape})
    table = data / f"{BENCHMARK}.tsv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    kits = [sys.executable, Path(__file__).parent / "kits.py", folder / checkpoint, "--bench", table]
    kits += ["--keel", ROOT / "target" / "release" / "keel", "--vlmevalkit", checkout]
    subprocess.run(kits, check=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, help="where everything is kept")
    parser.add_argument("--vlmevalkit", type=Path, metavar="CHECKOUT", help="evaluates with VLMEvalKit, too")
    arguments = parser.parse_args()
    subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
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
            is_same = ours == answer.strip() if is_whole else ours.startswith(answer.strip())
            wrong += not is_same
            shown = " ".join(path.name for path in paths)
            print(f"{shown:<16}{question!r:<24} {ours[:40]!r}" + ("" if is_same else f", transformers {answer!r}"))
        if wrong:
            sys.exit(f"{wrong} of {len(asked)} answers differ")
        print(f"{len(asked)} of {len(asked)} answers are the same in transformers")
        if arguments.vlmevalkit:
            evaluate(folder, str(checkpoint), arguments.vlmevalkit)


if __name__ == "__main__":
    main()
