#!/usr/bin/env bash
# Makes what installs without Rust, and tries it: a wheel of the program, in the form that maturin calls bin (`pip install keel-….whl`
# gives the command `keel`), and an archive of the stripped program with its licences, both in target/packages.
#
#     tools/package.sh            # of the release build, which it makes
#     tools/package.sh dev        # of the test build, which is there after cargo test: for continuous integration
#
# Needs python3 with venv, and the network once, for Python's wheel, which is kept in target/wheel.
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
# The tag of macOS names the least version of the system; that of Linux says nothing of its C library, as the program is built here.
tag="$(target/wheel/bin/python -c 'import sysconfig; print(sysconfig.get_platform().replace("-", "_").replace(".", "_"))')"
info="$try/wheel/keel-$version.dist-info"
mkdir -p "$info/licenses" "$try/wheel/keel-$version.data/scripts"
cp "$try/keel" "$try/wheel/keel-$version.data/scripts/keel"
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
ls -l "$out"
