"""One golden file: inputs drawn from a seeded stream, and what PyTorch made of them, as safetensors.

The writer is here, not the safetensors package's, because that one orders the metadata differently in every process
and a golden must come out byte for byte the same from the same versions. Nothing here knows an op or a model.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

NAMES = {"float64": "F64", "float32": "F32", "int32": "I32"}


class Golden:
    """Tensors by name, the stream they are drawn from, and the configuration that a test rebuilds the same work from.

    Every number drawn is rounded to f32 and then held as f64, so that a reader sees exactly what PyTorch computed with.
    """

    def __init__(self, name: str, config: dict):
        self.name = name
        self.config = config
        self.seed = zlib.crc32(name.encode())
        self.random = np.random.Generator(np.random.PCG64(self.seed))
        self.tensors: dict[str, np.ndarray] = {}

    def normal(self, *shape: int, scale: float = 1.0, offset: float = 0.0) -> torch.Tensor:
        """Normal numbers with the given deviation and mean."""
        drawn = (self.random.standard_normal(shape) * scale + offset).astype(np.float32)
        return torch.from_numpy(drawn.astype(np.float64))

    def integers(self, *shape: int, low: int, high: int) -> torch.Tensor:
        """Whole numbers in low..high, the upper end left out."""
        return torch.from_numpy(self.random.integers(low, high, shape, dtype=np.int64))

    def store_exact(self, name: str, tensor: torch.Tensor) -> None:
        """Keeps an input: f32 or i32, without loss."""
        array = tensor.detach().numpy()
        stored = array.astype(np.float32 if tensor.is_floating_point() else np.int32)
        assert (stored.astype(array.dtype) == array).all(), f"{self.name}: {name} loses digits"
        self._put(name, stored)

    def store_result(self, name: str, tensor: torch.Tensor, dtype: type = np.float64) -> None:
        """Keeps something computed; `dtype` f32 where the file would grow too large."""
        array = tensor.detach().numpy()
        assert np.isfinite(array).all(), f"{self.name}: {name} is not finite"
        self._put(name, array.astype(dtype))

    def _put(self, name: str, array: np.ndarray) -> None:
        assert name not in self.tensors, f"{self.name}: {name} stored twice"
        self.tensors[name] = np.ascontiguousarray(array.reshape(1) if array.ndim == 0 else array)

    def metadata(self) -> dict[str, str]:
        """What made the file: versions, seed and configuration."""
        return {
            "config": json.dumps(self.config),
            "numpy": np.__version__,
            "seed": str(self.seed),
            "torch": torch.__version__,
        }

    def to_bytes(self) -> bytes:
        """The safetensors file. Widest types first, then by name, so that every tensor is aligned."""
        order = sorted(self.tensors, key=lambda name: (-self.tensors[name].itemsize, name))
        header: dict = {"__metadata__": self.metadata()}
        offset = 0
        for name in order:
            array = self.tensors[name]
            header[name] = {
                "dtype": NAMES[array.dtype.name],
                "shape": list(array.shape),
                "data_offsets": [offset, offset + array.nbytes],
            }
            offset += array.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return b"".join([struct.pack("<Q", len(text)), text, *(self.tensors[name].tobytes() for name in order)])

    def differences(self, path: Path) -> list[str]:
        """Where the file at `path` is not what this one is: inputs must be equal, results equal to rounding."""
        found, tensors = read(path)
        problems = []
        if json.loads(found["config"]) != self.config or found["seed"] != str(self.seed):
            problems.append("configuration or seed differs")
        if set(tensors) != set(self.tensors):
            problems.append(f"tensors differ: {sorted(set(tensors) ^ set(self.tensors))}")
        for name in set(tensors) & set(self.tensors):
            ours, theirs = self.tensors[name], tensors[name]
            if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
                problems.append(f"{name}: {ours.dtype} {ours.shape} against {theirs.dtype} {theirs.shape}")
                continue
            exact = "input." in name or "cotangent." in name or name.startswith("parameter.")
            largest = float(np.abs(ours).max(initial=0.0))
            room = 0.0 if exact else {8: 1e-11, 4: 2e-7}[ours.itemsize] * largest + 1e-14
            worst = float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0.0))
            if worst > room:
                problems.append(f"{name}: differs by {worst:.3g}, at most {room:.3g} is rounding")
        return problems


def read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and tensors of a file that `to_bytes` made."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    numpy_names = {stored: name for name, stored in NAMES.items()}
    tensors = {}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(data[start:end], numpy_names[entry["dtype"]]).reshape(entry["shape"])
    return metadata, tensors
