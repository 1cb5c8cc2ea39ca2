"""What tools/real.py does with packages that are not what they were: one sentence, and nothing left behind.

    python tools/test_real.py

Needs nothing but Python, and no network; where Pillow is missing, the case of broken pictures is skipped.
"""

import dataclasses
import hashlib
import io
import lzma
import os
import subprocess
import sys
import tarfile
import tempfile
import unittest
import zipfile
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
sys.path.insert(0, str(TOOLS))


from real_packages import STAMPS, TOWER, Refusal, fetched, licensed, made, members

try:
    from PIL import Image
except ImportError:
    Image = None


def wheel(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def debian(path: Path, files: dict[str, bytes]) -> None:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    whole = b"!<arch>\n"
    for name, content in {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": lzma.compress(inner.getvalue())}.items():
        whole += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content + b"\n" * (len(content) % 2)
    path.write_bytes(whole)


def known(package, path: Path):
    """The package with the hash of this file."""
    return dataclasses.replace(package, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


class Packages(unittest.TestCase):
    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)

    def refused(self, words: str, call, *arguments) -> None:
        with self.assertRaisesRegex(Refusal, words) as caught:
            call(*arguments)
        self.assertNotIn("\n", str(caught.exception))

    def test_a_package_that_is_not_there_is_named(self) -> None:
        self.refused(f"{TOWER.file}: no such file", fetched, TOWER, self.folder, self.folder)

    def test_a_package_of_another_hash_is_not_used(self) -> None:
        (self.folder / TOWER.file).write_bytes(b"another")
        self.refused("expected SHA-256 90a0.*, found", fetched, TOWER, self.folder, self.folder)

    def test_a_registry_that_fails_or_has_no_client_is_named(self) -> None:
        tools = self.folder / "bin"
        tools.mkdir()
        before = os.environ["PATH"]
        self.addCleanup(os.environ.__setitem__, "PATH", before)
        os.environ["PATH"] = str(tools)
        self.refused("apt-get is not there", fetched, STAMPS, None, self.folder)
        client = tools / "apt-get"
        client.write_text("#!/bin/sh\necho 'E: Unable to locate it' >&2\nexit 100\n")
        client.chmod(0o755)
        self.refused("Unable to locate it.*--packages", fetched, STAMPS, None, self.folder)
        # One that says it went well, and brought nothing.
        client.write_text("#!/bin/sh\nexit 0\n")
        self.refused("did not bring tuxpaint", fetched, STAMPS, None, self.folder)

    def test_a_missing_or_empty_licence_is_refused_in_wheels_and_debian_packages(self) -> None:
        for package, write in ((TOWER, wheel), (STAMPS, debian)):
            path, (licence,) = self.folder / package.file, package.licences
            for files in ({"a": b"1"}, {licence: b"  \n"}):
                write(path, files)
                self.refused("is missing, which says under which licence", licensed, package, path, self.folder)
            write(path, {licence: b"free", "a": b"1"})
            licensed(package, path, self.folder)
            self.assertEqual(fetched(known(package, path), self.folder, self.folder), path)
            self.assertEqual(dict(members(path, lambda name: name == "a")), {"a": b"1"})

    def test_what_is_no_debian_package_is_refused(self) -> None:
        path = self.folder / "x.deb"
        for content in (b"", b"!<arch>\n", b"PK"):
            path.write_bytes(content)
            self.refused("no Debian package|holds no data.tar.xz", lambda: list(members(path, bool)))

    def test_a_folder_appears_whole_or_not_at_all(self) -> None:
        out = self.folder / "deep" / "out"

        def half(work: Path) -> None:
            (work / "half").write_text("done")
            raise Refusal("something is missing")

        for problem in (half, lambda work: [][0], lambda work: sys.exit(143)):
            with self.assertRaises((Refusal, IndexError, SystemExit)):
                made(out, problem)
            self.assertEqual(list(out.parent.iterdir()), [])
        made(out, lambda work: (work / "whole").write_text("done"))
        self.assertEqual([path.name for path in out.parent.iterdir()], ["out"])
        self.refused("is there already", made, out, lambda work: None)
        self.assertEqual((out / "whole").read_text(), "done")

    def test_the_program_ends_with_one_sentence(self) -> None:
        out = self.folder / "out"
        command = [sys.executable, TOOLS / "real.py", "--packages", self.folder, "--out", out]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(done.returncode, 1, done)
        self.assertTrue(done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1, done)
        self.assertEqual(list(self.folder.iterdir()), [])

    @unittest.skipIf(Image is None, "needs Pillow")
    def test_broken_pictures_are_counted_and_too_many_are_refused(self) -> None:
        from real_pictures import Picture, drawn

        def png(red: int) -> bytes:
            file = io.BytesIO()
            Image.new("RGBA", (600, 300), (red, 0, 0, 128)).save(file, "PNG")
            return file.getvalue()

        pictures = [Picture(f"{red}", png(red), "A square.", "shape") for red in range(55, 255, 2)]
        broken = Picture("broken", png(1)[:200], "A square.", "shape")
        # The same again counts once.
        again = Picture("again", png(55), "A square.", "shape")
        kept, left_out = drawn([*pictures, broken, again], self.folder)
        self.assertEqual((len(kept), left_out), (100, ["broken"]))
        with Image.open(self.folder / kept[0].file) as image:
            self.assertEqual((image.mode, image.size), ("RGB", (224, 112)))
            self.assertEqual(image.getpixel((5, 5)), (155, 127, 127))
        self.refused("cannot be read, for example broken", drawn, [pictures[0], broken], self.folder)


if __name__ == "__main__":
    unittest.main()
