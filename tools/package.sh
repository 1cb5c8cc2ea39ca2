#!/usr/bin/env bash
# Makes what installs without Rust, and tries it: a wheel (`pip install keel-….whl` gives the command `keel`) and an archive of the
# stripped program with its licences, both in target/packages.
#
#     tools/package.sh            # of the release build
#     tools/package.sh dev        # of the test build, which is there after cargo test: for continuous integration
#
# Needs python3 with venv, and the network once, for maturin, which is kept in target/maturin.
set -euo pipefail
cd "$(dirname "$0")/.."
profile="${1:-release}"
case "$profile" in
    release) built=target/release ;;
    dev) built=target/debug ;;
    *) echo "error: profile $profile: expected release or dev" >&2; exit 2 ;;
esac
out=target/packages
rm -rf "$out"
mkdir -p "$out"
if [ ! -x target/maturin/bin/maturin ]; then
    python3 -m venv target/maturin
    target/maturin/bin/pip install --quiet 'maturin>=1.9,<2'
fi
cargo build --profile "$profile" --bin keel
# The same build: maturin finds it done, and packs it.
(cd tools/package && ../../target/maturin/bin/maturin build --quiet --profile "$profile" --compatibility linux --out "../../$out")
version="$("$built/keel" --version | cut -d' ' -f2)"
name="keel-$version-$(uname -s | tr '[:upper:]' '[:lower:]')-$(uname -m)"
mkdir "$out/$name"
strip -o "$out/$name/keel" "$built/keel"
cp README.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT "$out/$name"
cp assets/NOTICE.md "$out/$name/NOTICE.md"
tar -czf "$out/$name.tar.gz" -C "$out" "$name"
rm -r "${out:?}/$name"

# Both in an empty environment: nothing but what was packed may be needed.
try="$(mktemp -d)"
trap 'rm -rf "$try"' EXIT
python3 -m venv "$try/venv"
"$try/venv/bin/pip" install --quiet --no-index "$out"/keel-*.whl
tar -xzf "$out/$name.tar.gz" -C "$try"
for program in "$try/venv/bin/keel" "$try/$name/keel"; do
    (cd "$try" && env -i PATH=/usr/bin:/bin HOME="$try" "$program" --version)
    (cd "$try" && env -i PATH=/usr/bin:/bin HOME="$try" "$program" train --recipe tiny --device cpu --max-steps 1 --no-evaluation --out "$(basename "$(dirname "$program")")" > /dev/null)
done
ls -l "$out"
