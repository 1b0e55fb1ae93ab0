#!/usr/bin/env bash
# Compiles the eBPF programs into a folder (this one, unless another is named). Byte for byte the same on every machine
# with Debian's clang-14: what is committed is compared with it in a test.
set -euo pipefail
cd "$(dirname "$0")"
to=${1:-.}
for source in *.bpf.c; do
  clang-14 -O2 -target bpf -mcpu=v3 -Wall -Wextra -Werror -fno-ident -fno-addrsig \
    "-I/usr/include/$(uname -m)-linux-gnu" -c "$source" -o "$to/${source%.c}.o"
done
