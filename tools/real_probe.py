"""What a tower alone knows of the kinds of the images that tools/real.py took.

    python tools/real_probe.py [--real FOLDER] [--size PIXELS] TOWER ...

Each TOWER is a folder that transformers loads, such as runs/real/dinov2-small or what `keel export` wrote. Mean tokens of the images
that are trained on stand for their kinds; the kinds of the held-out ones are then told by the 20 nearest and by ridge regression,
both as `keel eval` defines them (docs/evaluation.md). Images are of --size pixels for all towers, whatever their own size is.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

ROOT = Path(__file__).resolve().parent.parent
# As `keel eval`: DINOv2's temperature and number of neighbours, and the penalty of its linear probe.
NEIGHBOURS, TEMPERATURE, PENALTY = 20, 0.07, 0.03


@torch.no_grad()
def features(tower: Path, pictures: list[Path], size: int) -> np.ndarray:
    """Mean tokens [n, C] of the pictures, the class token left out."""
    model, processor = AutoModel.from_pretrained(tower).eval(), AutoImageProcessor.from_pretrained(tower)
    # As much is cut away as at the tower's own size.
    edge = processor.size["shortest_edge"] * size // processor.crop_size["height"]
    rows = []
    for first in range(0, len(pictures), 32):
        images = [Image.open(path).convert("RGB") for path in pictures[first : first + 32]]
        inputs = processor(images, size={"shortest_edge": edge}, crop_size={"height": size, "width": size}, return_tensors="pt")
        tokens = model(inputs["pixel_values"]).last_hidden_state
        patches = (size // model.config.patch_size) ** 2
        rows.append(tokens[:, -patches:].mean(dim=1).numpy())
    return np.concatenate(rows).astype(np.float64)


def neighbours(train: np.ndarray, kinds: list[str], test: np.ndarray) -> list[str]:
    """The kind that the nearest of the training pictures vote for."""
    train, test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    found = []
    for likeness in test @ train.T:
        votes: Counter = Counter()
        for index in np.argsort(-likeness, kind="stable")[:NEIGHBOURS]:
            votes[kinds[index]] += np.exp(likeness[index] / TEMPERATURE)
        found.append(votes.most_common(1)[0][0])
    return found


def ridge(train: np.ndarray, kinds: list[str], test: np.ndarray) -> list[str]:
    """The kind of the largest value of a regression onto all kinds."""
    names = sorted(set(kinds))
    wanted = np.array([[float(kind == name) for name in names] for kind in kinds])
    mean, centre = train.mean(axis=0), wanted.mean(axis=0)
    x = train - mean
    penalty = PENALTY * (x**2).sum(axis=0).mean()
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (wanted - centre))
    return [names[row.argmax()] for row in (test - mean) @ weights + centre]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("towers", nargs="+", type=Path, metavar="TOWER")
    parser.add_argument("--real", type=Path, default=ROOT / "runs" / "real", metavar="FOLDER", help="what tools/real.py made")
    parser.add_argument("--size", type=int, default=112, metavar="PIXELS", help="height and width of the images")
    arguments = parser.parse_args()
    pictures = [
        picture | {"path": arguments.real / name / picture["image"]}
        for name in ("stamps", "clip-art")
        for picture in json.loads((arguments.real / name / "images.json").read_text())
    ]
    held_out = np.array([picture["is_held_out"] for picture in pictures])
    kinds = [picture["kind"] for picture in pictures]
    known = [kind for kind, is_held_out in zip(kinds, held_out) if not is_held_out]
    asked = [kind for kind, is_held_out in zip(kinds, held_out) if is_held_out]
    usual = Counter(known).most_common(1)[0][0]
    print(f"{len(asked)} held-out images of {len(set(kinds))} kinds; the most frequent kind is {asked.count(usual) / len(asked):.1%} of them")
    for tower in arguments.towers:
        all_features = features(tower, [picture["path"] for picture in pictures], arguments.size)
        train, test = all_features[~held_out], all_features[held_out]
        shares = [np.mean([a == b for a, b in zip(told(train, known, test), asked)]) for told in (neighbours, ridge)]
        print(f"{tower}: {shares[0]:.1%} by neighbours, {shares[1]:.1%} by a linear probe", flush=True)


if __name__ == "__main__":
    main()
