#!/usr/bin/env bash
# Builds the command for a target and packs it with manual pages, completions and licences, as a release has it:
#
#     tools/release/pack.sh [TARGET]        # dist/navicache-VERSION-TARGET.tar.gz (.zip for Windows) and its .sha256
#
# Without TARGET, for this machine. The pages and completions are made by the program itself, so a target that this
# machine cannot run is packed without them.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=${1:-$(rustc -vV | sed -n 's/^host: //p')}
version=$(sed -n '/^\[workspace.package\]/,/^\[/ s/^version = "\(.*\)"/\1/p' Cargo.toml)
cargo build --release --locked -p navicache --bin navicache ${1:+--target "$1"}
built=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/' | tr '\\' '/' | sed 's|//|/|g')
built=$built/${1:+$1/}release

name=navicache-$version-$target
rm -rf "dist/$name"
mkdir -p "dist/$name"
program=navicache
case $target in *windows*) program=navicache.exe ;; esac
cp "$built/$program" README.md CHANGELOG.md CITATION.cff LICENSE-MIT LICENSE-APACHE "dist/$name/"
if "$built/$program" --version >/dev/null 2>&1; then
    "$built/$program" man "dist/$name/man" >/dev/null
    mkdir "dist/$name/completions"
    for shell in bash zsh fish powershell elvish; do
        "$built/$program" completions $shell > "dist/$name/completions/navicache.$shell"
    done
else
    echo "$target cannot be run here: no manual pages, no completions" >&2
fi

cd dist
case $target in
    *windows*) archive=$name.zip; rm -f "$archive"; 7z a -bso0 "$archive" "$name" ;;
    *) archive=$name.tar.gz; tar -czf "$archive" "$name" ;;
esac
if command -v sha256sum >/dev/null; then sha256sum "$archive"; else shasum -a 256 "$archive"; fi > "$archive.sha256"
cat "$archive.sha256"
