#!/usr/bin/env python3
"""Measures Rhumb on this machine: `make bench`, or `bench/run.py --rhumb PATH [NAME ...]`.

Every figure comes from the real binary and a real cluster in namespaces, or from the proxy's own code in one. Peers that
Debian carries are measured in the same run, in turn with the subject. Prints a Markdown table: what, how many runs, median
with minimum and maximum, target, and the peers' figures.
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
import start

BENCHES = {
    "start": start.bench_start, "first-answer": start.bench_first_answer, "idle": start.bench_idle,
    "create": api.bench_create, "read": api.bench_read, "watch": api.bench_watch,
    "pod-start": pods.bench_pod_start, "ready": pods.bench_ready, "rolling": pods.bench_rolling,
    "dns": dns.bench_dns, "proxy": proxy.bench_proxy, "dataplane": dataplane.bench_dataplane,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rhumb", required=True, help="the binary, built with --release")
    parser.add_argument("names", nargs="*", choices=[*BENCHES, []], help="which; all when not given")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("bench/run.py needs root: a cluster is namespaces and kernel rules")
    for name in args.names or BENCHES:
        load = os.getloadavg()[0]
        print(f"== {name}: {BENCHES[name].__doc__.splitlines()[0]} (load of the machine before: {load:.1f})", flush=True)
        BENCHES[name](args.rhumb)
    print("\n" + lab.table())


if __name__ == "__main__":
    main()
