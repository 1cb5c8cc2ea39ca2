"""The program `keel`, and what its engine makes of images as numpy arrays."""

import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path


def program() -> str:
    """The installed program."""
    beside = Path(sysconfig.get_path("scripts")) / "keel"
    found = str(beside) if beside.is_file() else shutil.which("keel")
    if not found:
        raise FileNotFoundError("the program keel is not installed here: pip install its wheel")
    return found


def features(tower, images, form="mean", *, image_size=None, device=None, threads=None):
    """What the vision tower of a Hugging Face folder makes of image files: float32, in their order.

    `form` is "mean" (of the patch tokens, [n, C]), "pooled" (what the tower makes one row of by itself, [n, C]) or "tokens"
    ([n, T, C]). The engine is that of `keel features`, in a process of its own. Needs numpy; raises RuntimeError with the program's
    sentence where something is wrong.
    """
    import numpy

    paths = [os.path.abspath(image) for image in images]
    if unclear := next((path for path in paths if "\n" in path), None):
        raise ValueError(f"the name {unclear!r} has a line break, which a list of files cannot hold")
    command = [program(), "features", os.fspath(tower), "--form", form]
    for option, value in [("--image-size", image_size), ("--device", device), ("--threads", threads)]:
        if value is not None:
            command += [option, str(value)]
    with tempfile.TemporaryDirectory() as folder:
        listed, out = Path(folder, "images.txt"), Path(folder, "features.npy")
        listed.write_text("".join(f"{path}\n" for path in paths))
        done = subprocess.run([*command, "--list", listed, "--out", out], capture_output=True, text=True)
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            raise RuntimeError(said[-1].removeprefix("error: ") if said else done.stderr.strip())
        return numpy.load(out)
