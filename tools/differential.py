"""Holds Keel's readers to those of Python over files that are valid but for a few places inside.

    python -m venv target/readers && target/readers/bin/pip install numpy pillow pyarrow safetensors
    cargo build --release -p keel-mutation
    target/readers/bin/python tools/differential.py [--seeds 2000] [KIND ...]

Files are made by seed and read by Keel (fuzz/mutation/reading.rs); then Python's tarfile, csv and json, Pillow, pyarrow and safetensors read
the same. Where both read a file they must agree: on names, sizes and contents of an archive's files, on pixels, on words, on tensors and
their shapes. Keel may refuse more than they do, and how often it does is printed by reason. What only Keel reads is printed by name:
each is to be understood. Ends with 1 where something disagrees.
"""

from __future__ import annotations

import argparse
import collections
import csv
import io
import json
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zlib

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageOps
from safetensors import safe_open

ROOT = pathlib.Path(__file__).resolve().parent.parent
Image.MAX_IMAGE_PIXELS = 1 << 16


class Disagreement(Exception):
    """Both read the file, and not the same."""


def archives(folder: pathlib.Path, reading: dict) -> None:
    with tarfile.open(folder / reading["input"], "r:", errorlevel=2) as archive:
        found = []
        for member in archive:
            if member.isreg() and not member.issparse():
                content = archive.extractfile(member).read()
                found.append([member.name, len(content), zlib.crc32(content)])
    if "read" not in reading:
        return
    # Keel leaves out names that climb out, and says so; of what it takes, the order must be the same. tarfile reads a long name to the
    # end of its block where it has no zero byte, whatever its size says.
    def is_same(own: list, other: list) -> bool:
        return own[1:] == other[1:] and re.sub(r"^(\./)+", "", other[0]).startswith(own[0])

    rest = iter(found)
    for entry in reading["read"]:
        if not any(is_same(entry, other) for other in rest):
            raise Disagreement(f"{entry} is not in {found}")


def images(folder: pathlib.Path, reading: dict) -> None:
    with Image.open(folder / reading["input"]) as image:
        kind = image.format
        image.load()
        image = ImageOps.exif_transpose(image)
        wide = image.mode.startswith("I;16") or image.mode == "I"
        pixels = np.asarray(image.convert("RGBA"))
    if "read" not in reading:
        return
    width, height = reading["read"]
    if [pixels.shape[1], pixels.shape[0]] != [width, height]:
        raise Disagreement(f"{width} x {height}, not {pixels.shape[1]} x {pixels.shape[0]}")
    # What comes of lossy data that were changed is nobody's to say: libjpeg wraps what overflows. Pillow pads runs of BMP by their place in
    # the file, not in the pixels; and it clips 16 bits at 255 where Keel takes the upper eight, as for colours.
    content = (folder / reading["input"]).read_bytes()
    is_odd = kind == "BMP" and content[10] % 2 == 1
    if kind in ("JPEG", "WEBP") or wide or is_odd:
        return
    own = np.frombuffer((folder / "pixels").read_bytes(), np.uint8).reshape(height, width, 4)
    # What is hidden has no colour to agree on.
    seen = (own[..., 3] > 0) | (pixels[..., 3] > 0)
    apart = np.abs(own.astype(int) - pixels.astype(int))[seen]
    if apart.size and apart.max() > 0:
        raise Disagreement(f"{kind}: pixels differ by up to {apart.max()}")


def texts_of(value: object) -> list[str]:
    """Every string in a tree, keys left out."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in texts_of(item)]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in texts_of(item)]
    return []


def plain(text: str) -> str:
    """Words without what marks images and the white space at their edges."""
    return "".join(re.sub(r"<image>|<\|image_pad\|>|\ufffc|<img>|\x00", "", text).split())


def hold_words(reading: dict, known: list[str]) -> None:
    if "read" not in reading:
        return
    everything = sorted({plain(text) for text in known if plain(text)}, key=len, reverse=True)
    joined = "\x01".join(everything)
    for texts in reading["read"]["words"]:
        for text in texts:
            # Some are cut out of a longer one, and parts of a message are put together.
            rest = plain(text)
            for part in [] if rest in joined else everything:
                rest = rest.replace(part, "")
            if rest and rest not in joined:
                raise Disagreement(f"{text!r} is not made of {everything[:20]}")


def records(folder: pathlib.Path, reading: dict) -> None:
    content = (folder / reading["input"]).read_bytes()
    text = content.decode("utf-8-sig")
    if reading["input"].endswith(".json"):
        hold_words(reading, texts_of(json.loads(text)))
        return
    if reading["input"].endswith(".jsonl"):
        trees, broken = [], 0
        for line in text.split("\n"):
            try:
                trees += [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError:
                broken += 1
        hold_words(reading, texts_of(trees))
        if broken and not trees:
            raise ValueError("no line is JSON")
        return
    first = text.split("\n")[0]
    delimiter = max("\t,;", key=first.count)
    csv.field_size_limit(1 << 30)
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    hold_words(reading, texts_of(rows))


def parquet(folder: pathlib.Path, reading: dict) -> None:
    table = pq.read_table(folder / reading["input"], page_checksum_verification=False)
    rows = table.to_pylist()
    known = texts_of(rows)
    # Labels and numbers are words too, and a label's name stands in the schema.
    for metadata in (table.schema.metadata or {}).values():
        known += re.findall(r'"([^"]*)"', metadata.decode("utf-8", "replace"))
    hold_words(reading, known)


def weights(folder: pathlib.Path, reading: dict) -> None:
    with safe_open(folder / reading["input"], framework="numpy") as tensors:
        shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}
    if "read" in reading and reading["read"] != shapes:
        raise Disagreement(f"{reading['read']} is not {shapes}")


KINDS = {"archives": archives, "images": images, "records": records, "parquet": parquet, "weights": weights}


def compare(kind: str, program: pathlib.Path, seeds: int, folder: pathlib.Path) -> bool:
    """Prints how the readers of one kind compare; returns whether they agree wherever both read."""
    subprocess.run([program, "read", kind, str(seeds), folder], check=True)
    both, neither, disagree = 0, 0, []
    keel_only: list[str] = []
    refused: collections.Counter[str] = collections.Counter()
    for seed, line in enumerate((folder / "readings.jsonl").read_text().splitlines()):
        reading = json.loads(line)
        try:
            KINDS[kind](folder / str(seed), reading)
            is_read, problem = True, ""
        except Disagreement as found:
            disagree.append(f"seed {seed}: {found}")
            continue
        except Exception as found:  # What the readers raise on bad files is theirs to choose.
            is_read, problem = False, f"{type(found).__name__}: {found}"
        if is_read and "read" in reading:
            both += 1
        elif is_read:
            reason = re.sub(r"^input[.a-z]*|\d+|'.*?'|/\S+", "…", reading["refused"])
            refused[reason[:110]] += 1
        elif "read" in reading:
            keel_only.append(f"seed {seed}: {problem[:150]}")
        else:
            neither += 1
    print(f"{kind}: {seeds} files; both read {both} and agree, neither {neither}, Python alone {sum(refused.values())}, ", end="")
    print(f"Keel alone {len(keel_only)}, disagreements {len(disagree)}")
    for reason, count in refused.most_common(12):
        print(f"  Python alone, {count} times: {reason}")
    for line in keel_only[:12]:
        print(f"  Keel alone, {line}")
    for line in disagree[:20]:
        print(f"  DISAGREE, {line[:400]}")
    return not disagree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "target/release/keel-mutation")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    agree = True
    for kind in given.kinds or KINDS:
        with tempfile.TemporaryDirectory() as folder:
            agree &= compare(kind, given.program, given.seeds, pathlib.Path(folder))
    sys.exit(0 if agree else 1)


if __name__ == "__main__":
    main()
