"""The sets of pictures of tools/real.py: which drawings are taken, what is said of them, and the lists that Keel reads."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import json
import re
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Iterator

import numpy as np
from PIL import Image

from real_packages import DRAWINGS, STAMPS, WORDS, Refusal, licensed, members

# Length of a picture's longer edge, pixels: what the tower's own processor cuts out.
EDGE = 224
# Pixels of a drawing, at most; the largest of the packages have a hundred million.
PIXELS = 1 << 28
# Share of drawings that may be broken.
BROKEN = 0.01
# Of the pictures one in so many is held out.
HELD_OUT = 10
# Held-out pictures that questions are asked about, at most, so that the benchmark takes minutes.
ASKED = 100

# What kind of thing the pictures of a folder show; those of other folders are not taken.
STAMP_KINDS = {
    "animals": "animal", "food": "food", "plants": "plant", "people": "person", "clothes": "clothing", "vehicles": "vehicle",
    "military/vehicles": "vehicle", "town/houses": "building", "town/monuments": "building", "town/roadsigns": "sign",
    "symbols/alphabets": "letter", "symbols/math": "number", "symbols/shapes": "shape", "hobbies/music": "instrument",
    "symbols/chess": "toy", "household": "object", "household/tools": "tool", "medical": "object", "sports": "sport", "space": "sky",
}  # fmt: skip
DRAWING_KINDS = {
    "animals": "animal", "food": "food", "plants": "plant", "people": "person", "people/clothing": "clothing",
    "people/bodypart": "body", "people/smilies": "face", "transportation/vehicles": "vehicle", "transportation/boating": "vehicle",
    "buildings": "building", "buildings/furniture": "furniture", "recreation/music": "instrument", "recreation/sports": "sport",
    "recreation/toys": "toy", "recreation/games/chess": "toy", "tools": "tool", "office": "object", "electronics": "object",
    "containers": "object", "education": "object", "computer/hardware": "object", "geography/astronomy": "sky",
    "science/astronomy": "sky", "signs_and_symbols/weather": "sky",
}  # fmt: skip
# Titles of whole series.
SERIES = re.compile(r"clip ?art|icon|symbol|inkscape|signs?\b|svg|untitled|unsorted|various|created|example|@", re.I)
# What says how a drawing was made, and not what it shows.
STYLE = set(
    "my new simple basic outline contour silhouette stylized drawn straight lines line art bw illustration drawing picture image"
    " border cartoon modern style version colour color coloured colored svg png sketch".split()
)
# Words that name no thing at the end of a caption.
VAGUE = set("boating parking recycling sailing sport sports yoga".split())
SMALL = set("a an the of and with in on at to no from for".split())
# Words that the tokenizer cuts, and that are English all the same.
ENGLISH = set(
    "blueberry boomerang burger burrito cassette cello clipboard crawfish croissant daffodil dartboard echidna elf eyebrow fawn"
    " fireman hamburger houseplant joystick ladybug lasagna lightbulb lollipop magnolia mermaid mitten moustache muffin orca padlock"
    " pancake paperclip rooster sandals smiley spaghetti trimmer tulip wreath".split()
)
# What a drawing without words of its own is called by its keywords, the first of them that it has.
NOUNS = (
    "penguin owl dolphin shark whale snake lizard frog turtle spider butterfly beetle bee ant horse cow pig sheep dog cat bear lion tiger"
    " elephant monkey mouse rabbit deer dinosaur dragon fish bird insect apple orange banana cherry lemon pear pie pizza cake candy"
    " cookie muffin egg bread fruit vegetable dessert flower tree leaf mushroom car truck bus train bicycle boat ship rocket"
    " plane guitar drum trumpet violin piano ball racket hat shoe sock hand foot eye mouth skull baby girl boy woman man moon sun"
    " star cloud lightning clock phone book pencil pen scissors key lamp bulb battery camera knife gun sword hammer house castle"
    " church tower chair table bed smiley".split()
)
# Words that take no article.
BARE = set(
    "bacon beef beer bread butter cheese chocolate clothing coffee corn fire flour food furniture garlic grass honey ice jewelry juice"
    " lettuce lightning meat milk money music pasta people popcorn rain rice salt sand snow soup spaghetti sugar tea toast water wine"
    " wood".split()
)
COLOURS = {
    "red": (205, 40, 35), "orange": (240, 140, 30), "yellow": (245, 220, 60), "green": (70, 150, 60), "blue": (60, 100, 190),
    "purple": (120, 60, 150), "pink": (240, 150, 180), "brown": (120, 75, 40), "black": (25, 25, 25), "grey": (128, 128, 128),
    "white": (245, 245, 245),
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A drawing with what is said of it."""

    # Where it lies in its package. Pictures whose names differ in numbers alone are of one series.
    name: str
    content: bytes
    caption: str
    kind: str


@dataclass(frozen=True)
class Drawn:
    """A picture that was written."""

    picture: Picture
    file: str
    colours: tuple[str, ...]

    @property
    def is_held_out(self) -> bool:
        """Whether its series is held out: no picture of it is trained on."""
        return of_series(self.picture.name) % HELD_OUT == 0


def of_series(name: str) -> int:
    """The same number for all pictures of a series."""
    stem = re.sub(r"[\d_\-]+|mirror|outlined?|filled", "", str(PurePosixPath(name).with_suffix("")).lower())
    return int.from_bytes(hashlib.sha256(stem.encode()).digest()[:8], "big")


def kind_of(path: str, kinds: dict[str, str]) -> str | None:
    """The kind that the nearest folder above says."""
    for folder in PurePosixPath(path).parents:
        if kind := kinds.get(str(folder)):
            return kind
    return None


def shrunk(content: bytes) -> tuple[bytes, tuple[str, ...]] | None:
    """A drawing on white, its longer edge at most EDGE, as PNG, and its colours; nothing where it cannot be read."""
    Image.MAX_IMAGE_PIXELS = PIXELS
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.draft("RGB", (EDGE, EDGE))
            image = image.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    image.thumbnail((EDGE, EDGE))
    white = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    file = io.BytesIO()
    white.convert("RGB").save(file, "PNG")
    return file.getvalue(), colours_of(image)


def colours_of(image: Image.Image) -> tuple[str, ...]:
    """The names of the one or two colours that most of a drawing has, without what is behind it."""
    pixels = np.asarray(image.resize((32, 32)), np.float32).reshape(-1, 4)
    shown = pixels[pixels[:, 3] > 128, :3]
    # Where nothing is transparent, white is what is behind.
    if len(shown) == len(pixels):
        shown = shown[shown.min(axis=1) < 240]
    if not len(shown):
        return ()
    named = np.array(list(COLOURS.values()), np.float32)
    nearest = ((shown[:, None] - named) ** 2).sum(axis=2).argmin(axis=1)
    shares = Counter(nearest.tolist()).most_common(2)
    return tuple(list(COLOURS)[index] for index, count in shares if count >= 0.25 * len(shown))


def drawn(pictures: list[Picture], folder: Path) -> tuple[list[Drawn], list[str]]:
    """Writes the pictures into `folder`, each once; returns them, and the names of those that cannot be read."""
    kept, broken, seen = [], [], set()
    with ProcessPoolExecutor() as workers:
        results = workers.map(shrunk, (picture.content for picture in pictures), chunksize=16)
        for number, (picture, result) in enumerate(zip(pictures, results)):
            if result is None:
                broken.append(picture.name)
                continue
            content, colours = result
            if content in seen:
                continue
            seen.add(content)
            file = f"{number:04}.png"
            (folder / file).write_bytes(content)
            kept.append(Drawn(picture, file, colours))
    if len(broken) > BROKEN * len(pictures):
        raise Refusal(f"{len(broken)} of {len(pictures)} drawings cannot be read, for example {broken[0]}")
    return kept, broken


def with_article(words: str) -> str:
    """A noun with the article that it takes, as a sentence."""
    last = words.split()[-1]
    is_plural = last == "feet" or last.endswith("s") and not last.endswith(("ss", "us", "is"))
    if words.split()[0] in ("a", "an", "the", "two", "three") or is_plural or last in BARE:
        text = words
    else:
        text = f"{'an' if words[0] in 'aeio' else 'a'} {words}"
    return text[0].upper() + text[1:] + "."


def stamps(path: Path, folder: Path) -> str:
    """Tux Paint's stamps, each with the first English sentence that stands beside it."""
    licensed(STAMPS, path, folder)
    root = "usr/share/tuxpaint/stamps/"
    content = dict(members(path, lambda name: name.startswith(root) and name.endswith((".png", ".txt"))))
    pictures = []
    for name in sorted(content):
        own = name.removeprefix(root)
        kind, words = kind_of(own, STAMP_KINDS), content.get(f"{name.removesuffix('.png')}.txt")
        if name.endswith(".png") and kind and words:
            line = words.decode("utf-8", "replace").splitlines()[0]
            if caption := sentence_of(line):
                pictures.append(Picture(own, content[name], caption, kind))
    return written(pictures, folder, "Tux Paint's stamps (tuxpaint-stamps-default 2022.06.04-1)", "GPL-2")


def sentence_of(line: str) -> str | None:
    """The first sentence of a stamp's words, without what stands in brackets; nothing where it is no short one."""
    line = re.sub(r"\s*\([^)]*\)", "", line).strip()
    first = re.split(r"(?<=[.!?])\s", line)[0].strip()
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9 ,'’\-]*[.!]?", first) or len(first.split()) > 9:
        return None
    return first.rstrip(".!") + "."


def clip_art(path: Path, words: Path, folder: Path) -> str:
    """Openclipart's drawings, each with a caption made of its title, its file's name or its keywords, in English words."""
    licensed(DRAWINGS, path, folder)
    licensed(WORDS, words, folder)
    root = "usr/share/openclipart/svg/"
    about = {
        name.removeprefix(root).removesuffix(".svg"): said_of(content)
        for name, content in members(words, lambda name: name.startswith(root) and name.endswith(".svg"))
    }
    titles = Counter(title for title, _ in about.values())
    english = english_words(folder.parent / "smollm2-135m-instruct" / "tokenizer.json")
    captions = {}
    for name, (title, own) in about.items():
        kind = kind_of(name, DRAWING_KINDS)
        if kind and (caption := caption_of(name, title if titles[title] < 5 else "", own, english)):
            captions[name] = caption, kind
    root = "usr/share/openclipart/png/"

    def own(name: str) -> str:
        return name.removeprefix(root).removesuffix(".png")

    pictures = [
        Picture(own(name), content, *captions[own(name)])
        for name, content in members(path, lambda name: name.startswith(root) and own(name) in captions)
    ]
    pictures.sort(key=lambda picture: picture.name)
    return written(pictures, folder, "Openclipart's drawings (openclipart-png and openclipart-svg 1:0.18+dfsg-19)", "public domain")


def said_of(drawing: bytes) -> tuple[str, list[str]]:
    """Title and keywords of an SVG drawing."""

    def all_of(tag: str) -> list[str]:
        found = re.findall(rf"<{tag}[^>]*>([^<]*)<".encode(), drawing)
        return [html.unescape(text.decode("utf-8", "replace")).strip().lower() for text in found]

    return next(iter(all_of("dc:title")), ""), [word for word in dict.fromkeys(all_of("rdf:li")) if word]


def english_words(tokenizer: Path) -> set[str]:
    """The words that SmolLM2's tokenizer has whole, which is made of English: of other languages it has few."""
    table = json.loads(tokenizer.read_text())["model"]["vocab"]
    return {token[1:] for token in table if re.fullmatch("Ġ[a-z]{3,}", token)} | ENGLISH


def caption_of(name: str, title: str, own: list[str], english: set[str]) -> str | None:
    """What a drawing shows, by the first of title, file name and keywords that is English."""

    def words_of(text: str) -> list[str]:
        return [word for word in re.findall(r"[a-z]+", re.sub(r"\([^)]*\)?", "", text.lower())) if word not in STYLE]

    def is_said(words: list[str]) -> bool:
        is_noun = bool(words) and words[-1] not in SMALL | VAGUE and words[0] not in SMALL - {"a", "an", "the"}
        return is_noun and len(words) <= 5 and all(word in english or word in SMALL for word in words)

    if not SERIES.search(title) and is_said(words := words_of(title)):
        return with_article(" ".join(words))
    # In the file's name the author's stands behind, often cut off: as far as it says what title and keywords say, or one word.
    stem = words_of(PurePosixPath(name).name)
    known = set(words_of(title)) | {part for word in own for part in words_of(word)}
    length = next((at for at, word in enumerate(stem) if word not in known), len(stem)) or 1
    if not SERIES.search(" ".join(stem[:length])) and is_said(stem[:length]):
        return with_article(" ".join(stem[:length]))
    parts = {part for word in own for part in (word, word.removesuffix("s"))}
    return next((with_article(noun) for noun in NOUNS if noun in parts), None)


def written(pictures: list[Picture], folder: Path, what: str, licence: str) -> str:
    """Writes the lists of a set and says what it is."""
    images = folder / "images"
    images.mkdir()
    kept, broken = drawn(pictures, images)
    parts = {"train": [one for one in kept if not one.is_held_out], "held-out": [one for one in kept if one.is_held_out]}
    counts = {}
    for name, part in parts.items():
        lines = [json.dumps(record) for record in records(part)]
        counts[name] = len(lines)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    questions, blind = write_questions(parts["held-out"], parts["train"], folder)
    said = [
        f"{len(kept)} images, of which {len(parts['held-out'])} are held out by series",
        f"{counts['train']} samples to train on",
        f"{questions} questions about held-out images, of which the usual answers answer {blind}",
    ]
    if broken:
        said.append(f"{len(broken)} drawings left out, which cannot be read: {', '.join(broken[:3])}")
    text = f"# {what}\n\n{'; '.join(said)}. Licence: {licence}, as the files beside this one say.\n\n"
    text += "Changed: on white, at most 224 pixels wide and high; captions as tools/real.py makes them.\n"
    (folder / "README.md").write_text(text)
    pictures = [
        {"image": f"images/{one.file}", "kind": one.picture.kind, "caption": one.picture.caption, "is_held_out": one.is_held_out}
        for one in kept
    ]
    (folder / "images.json").write_text(json.dumps(pictures, indent=1) + "\n")
    return "; ".join(said) + f"; {licence}"


def records(part: list[Drawn]) -> Iterator[dict]:
    """Conversations about each picture: what it is, what it looks like, and of what kind it is or whether it is something else."""
    captions = [one.picture.caption for one in part]
    for number, one in enumerate(part):
        caption, kind = one.picture.caption, one.picture.kind
        asked = [(CAPTION, caption)]
        if one.colours:
            asked.append(("What does it look like?", f"{caption[:-1]}, {' and '.join(one.colours)}, a kind of {kind}."))
        asked.append(yes_or_no(one, captions[(number * 7 + 3) % len(part)]) if number % 2 else (KIND, kind))
        for question, answer in asked:
            turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
            yield {"id": one.file, "image": f"images/{one.file}", "conversations": turns}


CAPTION, KIND = "What is this?", "Of what kind is it?"


def yes_or_no(one: Drawn, other: str) -> tuple[str, str]:
    """Whether a picture shows what it does, or something else: half and half, by other digits than those that hold pictures out."""
    is_right = of_series(one.picture.name) // HELD_OUT % 2 == 0 or other == one.picture.caption
    shown = one.picture.caption if is_right else other
    return f"Is this {shown[0].lower()}{shown[1:-1]}?", "yes" if is_right else "no"


def write_questions(part: list[Drawn], trained: list[Drawn], folder: Path) -> tuple[int, str]:
    """The benchmark of a set, for `keel eval --bench`; returns its questions, and what the answers that are usual in training get."""
    captions = [one.picture.caption for one in part]
    rows: list[dict] = []
    for number, one in enumerate(part[:: max(1, -(-len(part) // ASKED))]):
        image = base64.b64encode((folder / "images" / one.file).read_bytes()).decode()
        first = len(rows)
        for category, question, answer in (
            ("caption", CAPTION, one.picture.caption),
            ("kind", KIND, one.picture.kind),
            ("yes or no", *yes_or_no(one, captions[(number * 7 + 3) % len(part)])),
        ):
            # Later questions about a picture name the row that has it.
            shown = image if len(rows) == first else first
            rows.append({"index": len(rows), "image": shown, "question": question, "answer": answer, "category": category})
    write_table(rows, folder / "held-out.tsv")

    def usual(words: list[str]) -> str:
        return Counter(words).most_common(1)[0][0]

    guesses = {
        "caption": usual([one.picture.caption for one in trained]),
        "kind": usual([one.picture.kind for one in trained]),
        "yes or no": usual([row["answer"] for row in rows if row["category"] == "yes or no"]),
    }
    shares = []
    for category, guess in guesses.items():
        answers = [row["answer"] for row in rows if row["category"] == category]
        shares.append(f"{answers.count(guess) / len(answers):.0%} ({category})")
    return len(rows), ", ".join(shares)


def write_table(rows: list[dict], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def join(folder: Path, sets: list[str]) -> str:
    """Writes the lists of several sets as one beside them."""
    for name in ("train.jsonl", "held-out.jsonl"):
        with (folder / name).open("w") as file:
            for one in sets:
                for line in (folder / one / name).read_text().splitlines():
                    record = json.loads(line)
                    record |= {key: f"{one}/{record[key]}" for key in ("id", "image")}
                    file.write(json.dumps(record) + "\n")
    rows: list[dict] = []
    # Pictures in base64 are longer than a table's fields may be by default.
    csv.field_size_limit(1 << 24)
    for one in sets:
        before = len(rows)
        with (folder / one / "held-out.tsv").open(newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                shown = before + int(row["image"]) if row["image"].isdigit() else row["image"]
                rows.append(row | {"index": len(rows), "image": shown})
    write_table(rows, folder / "held-out.tsv")
    return f"both sets as one list, with {len(rows)} questions"
