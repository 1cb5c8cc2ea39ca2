"""Makes verify/goldens/*.safetensors: every op and whole tiny models, computed by PyTorch in f64.

    python tools/goldens.py            writes all files
    python tools/goldens.py op_adamw   writes the files of these names alone
    python tools/goldens.py --check    computes all again and compares with what is there

Needs torch and numpy; the versions that made a file are in its metadata. The tests of the engine only read the files.

A file of an op (`op_*.safetensors`) holds cases, keys `<case>/input.<name>`, `<case>/cotangent.<output>`,
`<case>/value.<output>`, `<case>/gradient.<input>`: the gradients are those of sum over outputs of <cotangent, value>.
A file about an update (`optimizer_*.safetensors`) holds cases too.
A file of a model (`model_*.safetensors`) holds `parameter.<name>`, `input.<name>`, `value.<intermediate>`, `loss` and
`gradient.<parameter>` of that loss. Inputs and parameters are f32 or i32 and exact; ops' results are f64; models'
intermediates and gradients are f32 roundings of the f64 result and the loss is f64. Metadata: `torch`, `numpy`, `seed`,
`config` (JSON: for an op its cases and their settings, for a model its configuration).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from golden_models import MODELS
from golden_ops import OPS
from golden_optimizers import OPTIMIZERS

FOLDER = Path(__file__).resolve().parent.parent / "verify" / "goldens"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the stored files, write nothing")
    parser.add_argument("names", nargs="*", help="the files to make, without .safetensors; all without any")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    FOLDER.mkdir(parents=True, exist_ok=True)
    problems = total = 0
    for make in [*OPS, *OPTIMIZERS, *MODELS]:
        golden = make()
        if arguments.names and golden.name not in arguments.names:
            continue
        path = FOLDER / f"{golden.name}.safetensors"
        if arguments.check:
            found = golden.differences(path) if path.exists() else ["missing"]
            problems += len(found)
            for problem in found:
                print(f"{path.name}: {problem}")
        else:
            data = golden.to_bytes()
            path.write_bytes(data)
            total += len(data)
            print(f"{path.name:44} {len(data):9,} bytes  {len(golden.tensors):4} tensors")
    if arguments.check:
        print("goldens agree" if problems == 0 else f"{problems} differences")
    else:
        print(f"{'all':44} {total:9,} bytes")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
