#!/usr/bin/env python3
"""Measures Rhumb on this machine: `make bench`, or `bench/run.py --rhumb PATH [NAME ...]`.

Every figure comes from the real binary and a real cluster in namespaces, or from the proxy's own code in one. Peers that
Debian carries are measured in the same run, in turn with the subject. Prints a Markdown table for each area: what, how many
runs, median with minimum and maximum, target, the peers' figures and the ratios to them. With `--write` the tables take the
places of those in docs/benchmarks.md.
"""

import argparse
import os
import sys

import api
import dataplane
import dns
import lab
import pods
import proxy
import silence
import start

BENCHES = {
    "start": start.bench_start, "first-answer": start.bench_first_answer, "idle": start.bench_idle,
    "create": api.bench_create, "read": api.bench_read, "watch": api.bench_watch,
    "pod-start": pods.bench_pod_start, "ready": pods.bench_ready, "rolling": pods.bench_rolling,
    "dns": dns.bench_dns, "proxy": proxy.bench_proxy, "dataplane": dataplane.bench_dataplane,
    "outside": dataplane.bench_outside,
    "silence": silence.bench_silence,
}


PAGE = lab.ROOT / "docs/benchmarks.md"


def write(name, text):
    """Puts an area's table between its marks in the documentation."""
    page = PAGE.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if begin not in page or end not in page:
        sys.exit(f"{PAGE} has no place for {name}")
    before, rest = page.split(begin, 1)
    PAGE.write_text(before + begin + text + "\n" + end + rest.split(end, 1)[1], encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rhumb", required=True, help="the binary, built with --release")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("names", nargs="*", choices=[*BENCHES, []], help="which; all when not given")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("bench/run.py needs root: a cluster is namespaces and kernel rules")
    for name in args.names or BENCHES:
        load = f"load of the machine before: {os.getloadavg()[0]:.1f}"
        print(f"== {name}: {BENCHES[name].__doc__.splitlines()[0]} ({load})", flush=True)
        BENCHES[name](args.rhumb)
        text = f"{lab.table()}\n\n{load[0].upper()}{load[1:]}."
        print(f"\n{text}\n", flush=True)
        if args.write:
            write(name, text)


if __name__ == "__main__":
    main()
