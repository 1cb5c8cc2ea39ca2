#!/usr/bin/env bash
# Makes what installs without Rust, and tries it: a wheel of the program, in the form that maturin calls bin (`pip install keel-….whl`
# gives the command `keel`), and an archive of the stripped program with its licences, both in target/packages.
#
#     tools/package.sh            # of the release build, which it makes
#     tools/package.sh dev        # of the test build, which is there after cargo test: for continuous integration
#
# Needs python3 with venv, and the network once, for Python's wheel and numpy, which are kept in target/wheel.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-release}" in
    release) cargo build --release --bin keel && program=target/release/keel ;;
    dev) program=target/debug/keel ;;
    *) echo "error: profile $1: expected release or dev" >&2; exit 2 ;;
esac
if [ ! -x "$program" ]; then
    echo "error: $program is not there: run cargo test first" >&2
    exit 1
fi
out=target/packages
rm -rf "$out"
mkdir -p "$out"
try="$(mktemp -d)"
trap 'rm -rf "$try"' EXIT
version="$("$program" --version | cut -d' ' -f2)"
system="$(uname -s | tr '[:upper:]' '[:lower:]')"
machine="$(uname -m)"
strip -o "$try/keel" "$program"

name="keel-$version-$system-$machine"
mkdir "$try/$name"
cp "$try/keel" README.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT "$try/$name"
cp assets/NOTICE.md "$try/$name/NOTICE.md"
tar -czf "$out/$name.tar.gz" -C "$try" "$name"

if [ ! -x target/wheel/bin/wheel ]; then
    python3 -m venv target/wheel
    target/wheel/bin/pip install --quiet wheel
fi
if [ ! -d target/wheel/numpy ]; then
    target/wheel/bin/pip download --quiet --dest target/wheel/numpy numpy
fi
# The tag of macOS names the least version of the system; that of Linux says nothing of its C library, as the program is built here.
tag="$(target/wheel/bin/python -c 'import sysconfig; print(sysconfig.get_platform().replace("-", "_").replace(".", "_"))')"
info="$try/wheel/keel-$version.dist-info"
mkdir -p "$info/licenses" "$try/wheel/keel-$version.data/scripts"
cp "$try/keel" "$try/wheel/keel-$version.data/scripts/keel"
mkdir "$try/wheel/keel"
cp tools/wheel/__init__.py "$try/wheel/keel/__init__.py"
cp LICENSE-APACHE LICENSE-MIT "$info/licenses"
cp assets/NOTICE.md "$info/licenses/NOTICE.md"
cat > "$info/METADATA" << END
Metadata-Version: 2.4
Name: keel
Version: $version
Summary: Trains and serves visual backbones for multimodal language models, on handwritten kernels
License-Expression: MIT OR Apache-2.0
License-File: LICENSE-APACHE
License-File: LICENSE-MIT
License-File: NOTICE.md
END
cat > "$info/WHEEL" << END
Wheel-Version: 1.0
Generator: keel
Root-Is-Purelib: false
Tag: py3-none-$tag
END
target/wheel/bin/wheel pack --dest-dir "$out" "$try/wheel" > /dev/null

# Both in an empty environment: nothing but what was packed may be needed.
mkdir "$try/unpacked"
tar -xzf "$out/$name.tar.gz" -C "$try/unpacked"
python3 -m venv "$try/venv"
"$try/venv/bin/pip" install --quiet --no-index "$out"/keel-*.whl
for installed in "$try/venv/bin/keel" "$try/unpacked/$name/keel"; do
    (
        cd "$try"
        run() { env -i PATH=/usr/bin:/bin HOME="$try" "$installed" "$@"; }
        run --version
        run train --recipe tiny --device cpu --max-steps 1 --no-evaluation --out "run-$(basename "$(dirname "$installed")")" > /dev/null
    )
done

# What the wheel's Python side offers, which is all that needs numpy.
"$try/venv/bin/pip" install --quiet --no-index --find-links target/wheel/numpy numpy
(
    cd "$try"
    env -i HOME="$try" PATH=/usr/bin:/bin venv/bin/keel export run-bin --out tower > /dev/null
    env -i HOME="$try" PATH=/usr/bin:/bin venv/bin/python - << 'END'
import struct, zlib
import keel, numpy

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

for name, shade in [("a.png", 40), ("b.png", 200)]:
    rows = (b"\0" + bytes([shade, 90, 10]) * 48) * 48
    head = struct.pack(">IIBBBBB", 48, 48, 8, 2, 0, 0, 0)
    with open(name, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
means = keel.features("tower", ["a.png", "b.png"], device="cpu")
tokens = keel.features("tower", ["b.png", "a.png"], "tokens", device="cpu")
assert means.dtype == numpy.float32 and means.ndim == 2 and len(means) == 2, means.shape
assert numpy.allclose(tokens[::-1].mean(axis=1), means, rtol=1e-5, atol=1e-6), abs(tokens[::-1].mean(axis=1) - means).max()
assert abs(means[0] - means[1]).max() > 0
try:
    keel.features("tower", ["none.png"])
except RuntimeError as problem:
    assert "none.png" in str(problem), problem
else:
    raise SystemExit("a missing image was not refused")
END
)
ls -l "$out"
