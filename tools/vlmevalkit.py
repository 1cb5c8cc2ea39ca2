"""VLMEvalKit on a whole model that `keel export --part model` wrote, without anybody's modelling code.

    git clone https://github.com/open-compass/VLMEvalKit
    python -m pip install -r VLMEvalKit/requirements.txt
    python tools/vlmevalkit.py VLMEvalKit FOLDER --data MMBench_DEV_EN MME

FOLDER becomes a model of VLMEvalKit by its last name, in this process alone; what follows goes to VLMEvalKit's run.py. The
model is put together from transformers' parts (`tools/assembled.py`), asked in the words of each benchmark, and answers greedily.
"""

import runpy
import sys
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from assembled import Assembled

# Tokens of an answer.
MOST = 512


def model_class():
    from vlmeval.vlm.base import BaseModel

    class Keel(BaseModel):
        INTERLEAVE = True

        def __init__(self, folder):
            super().__init__()
            self.model = Assembled(folder, "cuda" if torch.cuda.is_available() else "cpu")

        def generate_inner(self, message, dataset=None):
            pictures = [Image.open(item["value"]) for item in message if item["type"] == "image"]
            # One image stands before the text, wherever it came.
            mark = "<image>\n" if len(pictures) > 1 else ""
            texts = [item["value"] if item["type"] == "text" else mark for item in message]
            return self.model.answer(pictures, "".join(texts), MOST)[0]

    return Keel


def main() -> None:
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    checkout, folder = (Path(text).resolve() for text in sys.argv[1:3])
    if not (folder / "config.json").exists():
        sys.exit(f"{folder} holds no config.json: write it with keel export --part model")
    sys.path.insert(0, str(checkout))
    from vlmeval.config import supported_VLM

    supported_VLM[folder.name] = partial(model_class(), folder=folder)
    sys.argv = ["run.py", "--model", folder.name, *sys.argv[3:]]
    runpy.run_path(str(checkout / "run.py"), run_name="__main__")


if __name__ == "__main__":
    main()
