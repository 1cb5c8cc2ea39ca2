"""Makes docs/results/walk.md: the marked commands of the README and the guide, run in a fresh clone, and what they print.

    cargo build
    python tools/walk.py [PROGRAM]     # PROGRAM is target/debug/keel by default

Needs nothing beyond Python, git and bash. What is committed is cloned, so commit first. `cargo test` runs the same commands and
fails where one of them does; this page shows what a reader sees.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Iterator

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "The README", "docs/guide.md": "The guide"}
# Characters of a line of output, at most.
WIDTH = 150
HEAD = """# A walk through the README and the guide

Every marked command of the [README](../../README.md) and of the [guide](../guide.md), pasted in order into a shell at the root of a fresh
clone, and what it printed. Shortened where `…` stands; blank lines and the rules of tables are left out. Two CPU cores with other work
running, the development build (`cargo build`), no GPU. The line in brackets is the exit code and the time of the command. Written by
`python tools/walk.py`; `cargo test` runs the same commands.

All numbers are of models that were trained for six steps a stage. They say that the commands work, and nothing about refinement:
[default-run.md](default-run.md) has results.
"""
# Of the commands with long outputs, the lines that are kept: the first ones, those that match, and the last ones.
KEPT = {
    "keel train --dry-run": (8, r"planned|stage |model:|  (activations|total)|  \w+ +[\d,]+ parameters", 0),
    "keel train": (10, r"stage |[\w-]+ 6/6|target +\w+, |Images \(|Questions |all ", 2),
    "keel eval": (5, r"target|question |all |neighbours|[\w-]+-probe|against|block|stage |the same|kept|probe |Likeness", 0),
    "keel plan": (14, r"stage |  (activations|total)", 0),
    "keel data show": (3, r"\d+ items|images:", 0),
}


def commands(page: Path) -> Iterator[str]:
    """The commands of a page's marked blocks, each with its further lines."""
    for block in re.findall(r"^<!-- run -->\n```sh\n(.*?)^```$", page.read_text(), re.S | re.M):
        command, is_loop = "", False
        for line in block.splitlines():
            command += line + "\n"
            is_loop = (is_loop or line.startswith("for ")) and not line.startswith("done")
            if not is_loop and not line.endswith("\\"):
                yield command.rstrip("\n")
                command = ""


def shortened(command: str, output: str) -> list[str]:
    """The lines of an output that say something."""
    lines = [line for line in output.splitlines() if line.strip(" ─")]
    kind = "keel train --dry-run" if "--dry-run" in command else " ".join(command.split()[:3])
    first, pattern, last = next(
        (rule for start, rule in KEPT.items() if kind.startswith(start) and "--resume" not in command), (len(lines), "", 0)
    )
    kept = []
    for index, line in enumerate(lines):
        if index < first or index >= len(lines) - last or re.match(pattern, line):
            kept.append(line if len(line) <= WIDTH else line[: WIDTH - 2].rstrip() + " …")
        elif kept[-1] != "…":
            kept.append("…")
    return kept


def main() -> None:
    program = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/debug/keel").resolve()
    seen: set[str] = set()
    with tempfile.TemporaryDirectory() as temporary:
        clone, programs = Path(temporary) / "keel", Path(temporary) / "bin"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        programs.mkdir()
        (programs / "keel").symlink_to(program)
        environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
        text = HEAD
        for page, title in PAGES.items():
            text += f"\n## {title}\n\n```text\n"
            for command in commands(clone / page):
                start = time.monotonic()
                done = subprocess.run(
                    ["bash", "-c", command], cwd=clone, env=environment, stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT, text=True,
                )
                seconds = time.monotonic() - start
                shown = re.sub(r"\s+# .*$", "", command, flags=re.M)
                # Of a command that came before, only the folder and the speed differ.
                same = re.sub(r"--out \S+", "", shown)
                lines = ["… as above"] if same in seen else shortened(shown, done.stdout)
                seen.add(same)
                block = "\n".join([f"$ {shown}", *lines, f"[{done.returncode}, {seconds:.1f} s]"])
                text += block.replace(str(clone), "~/keel") + "\n\n"
                print(block.splitlines()[0], block.splitlines()[-1], flush=True)
            text = text.rstrip("\n") + "\n```\n"
    (ROOT / "docs/results/walk.md").write_text(text)


if __name__ == "__main__":
    main()
