#!/usr/bin/env bash
# Writes the Homebrew formula of a release to standard output, from the checksums that pack.sh left in a folder:
#
#     tools/release/homebrew.sh VERSION dist > packaging/navicache.rb
set -euo pipefail
version=$1 folder=$2
sum() { cut -d ' ' -f 1 "$folder/navicache-$version-$1.tar.gz.sha256"; }
url="https://github.com/navicache/navicache/releases/download/v$version/navicache-$version"
part() { printf '      url "%s-%s.tar.gz"\n      sha256 "%s"\n' "$url" "$1" "$(sum "$1")"; }

cat <<FORMULA
class Navicache < Formula
  desc "Video-diffusion engine that computes only the steps that matter"
  homepage "https://github.com/navicache/navicache"
  version "$version"
  license any_of: ["MIT", "Apache-2.0"]

  on_macos do
    on_arm do
$(part aarch64-apple-darwin)
    end
    on_intel do
$(part x86_64-apple-darwin)
    end
  end
  on_linux do
    on_arm do
$(part aarch64-unknown-linux-gnu)
    end
    on_intel do
$(part x86_64-unknown-linux-gnu)
    end
  end

  def install
    bin.install "navicache"
    man1.install Dir["man/*.1"]
    bash_completion.install "completions/navicache.bash" => "navicache"
    zsh_completion.install "completions/navicache.zsh" => "_navicache"
    fish_completion.install "completions/navicache.fish"
  end

  test do
    system bin/"navicache", "generate", "a red circle bouncing on a navy background", "--steps", "2", "-o", "out.mp4"
    assert_path_exists testpath/"out.mp4"
  end
end
FORMULA
