"""Peers from Debian's packages, unpacked into the cache: nothing is installed, no daemon starts by itself."""

import os
import pathlib
import shutil
import sys
import tempfile

from lab import run

PACKAGES = ["knot", "unbound", "bind9", "etcd-server", "iptables", "containerd", "runc"]
FOLDER = pathlib.Path(os.environ.get("RHUMB_CACHE", pathlib.Path.home() / ".cache/rhumb")) / "peers"


def fetch():
    """Downloads the packages and what they need beyond what is installed, once."""
    if FOLDER.exists():
        return
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.makedirs(f"{folder}/archives/partial")
        run("apt-get", "install", "-y", "--no-install-recommends", "--download-only", "-o", f"Dir::Cache::archives={folder}/archives",
            "-o", "APT::Sandbox::User=root", *PACKAGES)
        part = FOLDER.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        for package in pathlib.Path(folder, "archives").glob("*.deb"):
            run("dpkg-deb", "-x", package, part)
        part.rename(FOLDER)


def environment():
    """The environment in which the peers find their parts."""
    fetch()
    folders = [f"{FOLDER}/usr/sbin", f"{FOLDER}/usr/bin", f"{FOLDER}/sbin", os.environ["PATH"]]
    library = f"{FOLDER}/usr/lib/x86_64-linux-gnu"
    return {**os.environ, "PATH": ":".join(folders), "LD_LIBRARY_PATH": library, "XTABLES_LIBDIR": f"{library}/xtables"}


def command(name):
    """A peer's program; installed ones count too."""
    found = shutil.which(name, path=environment()["PATH"])
    if not found:
        sys.exit(f"{name} is not in Debian's packages {PACKAGES}")
    return found
