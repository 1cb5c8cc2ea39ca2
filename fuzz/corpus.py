"""Chooses small inputs for the targets *_inside and writes them into corpus/: see docs/fuzzing.md.

Of the seeds from 0 on, those are kept whose file reaches a counter in Keel's code that no seed before it reached; of each, as few
choices as reach the same counters that are new. Needs keel-mutation with coverage, and llvm-profdata of a version that fits:

    python fuzz/corpus.py target/debug/keel-mutation LLVM-PROFDATA [KIND...]
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent / "corpus"
# The seeds looked at and the files kept, at most: those that add most come early.
KINDS = {
    "archives": (100, 10),
    "images": (150, 24),
    "records": (100, 16),
    "parquet": (60, 10),
    "weights": (60, 10),
    "checkpoints": (30, 6),
    "runs": (16, 4),
}
TARGETS = {"runs": "run_folders_inside"}
MASK = (1 << 64) - 1


def choices_of(seed: int) -> bytes:
    """As keel_mutation::choices_of."""
    state, choices = seed, b""
    for _ in range(128):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        mixed = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & MASK
        choices += (mixed ^ (mixed >> 31)).to_bytes(8, "little")
    return choices


def reached(program: str, profdata: str, kind: str, choices: bytes) -> set[tuple[str, int]]:
    """The counters, by function and place, of Keel's own code that the file of these choices reaches."""
    with tempfile.TemporaryDirectory() as folder:
        file, raw = f"{folder}/choices", f"{folder}/raw"
        pathlib.Path(file).write_bytes(choices)
        environment = {**os.environ, "LLVM_PROFILE_FILE": raw}
        subprocess.run([program, "replay", kind, file], env=environment, stdout=subprocess.DEVNULL, check=True)
        merged = subprocess.run([profdata, "merge", "--sparse", "--text", raw], stdout=subprocess.PIPE, text=True, check=True)
    found = set()
    for record in merged.stdout.split("\n\n"):
        name, _, counters = record.partition("# Num Counters:\n")
        name = [line for line in name.splitlines() if line and line[0] not in "#:"]
        # The functions of the readers, and none that only make the file.
        if not name or not re.search(r"keel_(data|weights|train|report|model)", name[0]):
            continue
        values = counters.partition("# Counter Values:\n")[2].splitlines()
        found |= {(name[0], place) for place, value in enumerate(values) if value.isdigit() and value != "0"}
    return found


def choose(program: str, profdata: str, kind: str) -> None:
    folder = ROOT / TARGETS.get(kind, f"{kind}_inside")
    folder.mkdir(parents=True, exist_ok=True)
    seeds, most = KINDS[kind]
    additions, known = [], set()
    for seed in range(seeds):
        found = reached(program, profdata, kind, choices_of(seed))
        if found - known:
            additions.append((seed, found - known))
            known |= found
    additions = sorted(additions, key=lambda one: -len(one[1]))[:most]
    for seed, new in additions:
        choices = choices_of(seed)
        while len(choices) > 8 and new <= reached(program, profdata, kind, choices[: len(choices) // 2]):
            choices = choices[: len(choices) // 2]
        (folder / f"seed-{seed}").write_bytes(choices)
        print(kind, f"seed {seed}", f"{len(choices)} bytes", f"{len(new)} counters new", flush=True)


if __name__ == "__main__":
    program, profdata, *kinds = sys.argv[1:]
    for kind in kinds or KINDS:
        choose(program, profdata, kind)
