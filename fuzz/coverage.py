"""Runs `keel-mutation check` for seeds of each kind and tells how much of each reader they reach: see docs/fuzzing.md.

Needs keel-mutation with coverage, and a folder with llvm-profdata and llvm-cov of a version that fits:

    python fuzz/coverage.py target/debug/keel-mutation LLVM-FOLDER [KIND...]
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

# The seeds of each kind, as many as `cargo test` takes, and what their files are read by.
READERS = {
    "archives": (3000, r"src/data/formats/(archive|webdataset)\.rs"),
    "images": (4000, r"src/data/images/(decode/|catch_decoder_panic)"),
    "records": (2000, r"src/data/formats/(lines|table|rows|records|record_text|turns|pair|pairs|image_place)\.rs"),
    "parquet": (1000, r"src/data/formats/parquet/"),
    "weights": (700, r"src/weights/(folder|hf_config|processor|recognise|sub_model|head|tensor_re[a-z]+|families/[a-z_0-9]+)\.rs"),
    "checkpoints": (300, r"src/train/checkpoint/"),
    "runs": (60, r"src/(train/(checkpoint|run)|report/page)/"),
}


def summaries(program: str, tools: pathlib.Path, kind: str, seeds: int) -> list[dict]:
    """The summary of each file of Rust after the seeds of a kind."""
    with tempfile.TemporaryDirectory() as folder:
        raw, merged = f"{folder}/raw", f"{folder}/merged"
        environment = {**os.environ, "LLVM_PROFILE_FILE": raw}
        subprocess.run([program, "check", kind, str(seeds)], env=environment, stdout=subprocess.DEVNULL, check=True)
        subprocess.run([tools / "llvm-profdata", "merge", "--sparse", "-o", merged, raw], check=True)
        command = [tools / "llvm-cov", "export", "--summary-only", "--instr-profile", merged, program]
        told = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(told.stdout)["data"][0]["files"]


def share(files: list[dict], what: str) -> str:
    covered, count = (sum(file["summary"][what][key] for file in files) for key in ("covered", "count"))
    return f"{covered:,} of {count:,} ({covered / count:.0%})"


def main() -> None:
    program, tools, *kinds = sys.argv[1:]
    print("| kind | files | read by | lines | regions |\n|---|---|---|---|---|")
    for kind in kinds or READERS:
        seeds, pattern = READERS[kind]
        found = summaries(program, pathlib.Path(tools), kind, seeds)
        files = [file for file in found if re.search(rf"/{pattern}", file["filename"])]
        groups: dict[str, list[dict]] = {}
        for file in files:
            groups.setdefault(file["filename"][file["filename"].index("/src/") + 1 :], []).append(file)
        print(f"| `{kind}` | {seeds:,} | all of the following | {share(files, 'lines')} | {share(files, 'regions')} |")
        for name, own in sorted(groups.items()):
            print(f"| | | {name} | {share(own, 'lines')} | {share(own, 'regions')} |", flush=True)


if __name__ == "__main__":
    main()
