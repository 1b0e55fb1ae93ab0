"""Rule sets with a chain for each Service and each endpoint, as kube-proxy's modes lay them out, for the peers' own tools."""

PODS = "10.128.0.0/9"


def service(number):
    return f"10.{96 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def pods(number, count):
    found = (number * max(4, count) + index for index in range(count))
    return [f"10.{128 + (pod >> 16 & 63)}.{pod >> 8 & 255}.{pod & 255}" for pod in found]


def iptables_service(number, found):
    """The declarations and the rules of one Service's chains, for `iptables-restore`."""
    ip, svc = service(number), f"KUBE-SVC-{number}"
    chains, rules = [f":{svc} - [0:0]"], [f"-A {svc} ! -s {PODS} -d {ip}/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ"]
    for index, pod in enumerate(found):
        sep, left = f"KUBE-SEP-{number}-{index}", len(found) - index
        chains.append(f":{sep} - [0:0]")
        chance = f" -m statistic --mode random --probability {1 / left:.10f}" if left > 1 else ""
        rules.append(f'-A {svc} -m comment --comment "default/svc-{number} -> {pod}:8080"{chance} -j {sep}')
        rules.append(f"-A {sep} -s {pod}/32 -j KUBE-MARK-MASQ")
        rules.append(f"-A {sep} -p tcp -m tcp -j DNAT --to-destination {pod}:8080")
    return chains, rules


def iptables(services, endpoints, middle=None):
    """The whole `nat` table; the Service in the middle has the endpoints `middle` when these are given."""
    chains = [":KUBE-SERVICES - [0:0]", ":KUBE-POSTROUTING - [0:0]", ":KUBE-MARK-MASQ - [0:0]"]
    rules = ["-A PREROUTING -j KUBE-SERVICES", "-A OUTPUT -j KUBE-SERVICES", "-A POSTROUTING -j KUBE-POSTROUTING",
             "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000", "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
             "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000", "-A KUBE-POSTROUTING -j MASQUERADE --random-fully"]
    for number in range(services):
        more, own = iptables_service(number, middle if middle and number == services // 2 else pods(number, endpoints))
        chains += more
        rules.append(f'-A KUBE-SERVICES -d {service(number)}/32 -p tcp -m comment --comment "default/svc-{number} cluster IP" '
                     f"-m tcp --dport 80 -j KUBE-SVC-{number}")
        rules += own
    return "\n".join(["*nat", *chains, *rules, "COMMIT", ""])


def iptables_change(number, found):
    """One Service's chains anew, for `iptables-restore --noflush`."""
    chains, rules = iptables_service(number, found)
    return "\n".join(["*nat", *chains, *rules, "COMMIT", ""])


def nft_service(number, found):
    ip = service(number)
    lines = [f"add chain ip kube endpoint-{number}-{index}" for index in range(len(found))] + [f"add chain ip kube service-{number}"]
    lines += [f"flush chain ip kube endpoint-{number}-{index}" for index in range(len(found))] + [f"flush chain ip kube service-{number}"]
    for index, pod in enumerate(found):
        lines.append(f"add rule ip kube endpoint-{number}-{index} ip saddr {pod} jump mark-for-masquerade")
        lines.append(f"add rule ip kube endpoint-{number}-{index} meta l4proto tcp dnat to {pod}:8080")
    lines.append(f"add rule ip kube service-{number} ip daddr {ip} tcp dport 80 ip saddr != {PODS} jump mark-for-masquerade")
    ways = ", ".join(f"{index} : goto endpoint-{number}-{index}" for index in range(len(found)))
    lines.append(f"add rule ip kube service-{number} numgen random mod {len(found)} vmap {{ {ways} }}")
    return lines


def nft(services, endpoints, middle=None):
    """A whole table, for `nft -f`."""
    lines = ["add table ip kube", "add map ip kube service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }",
             "add chain ip kube mark-for-masquerade", "add rule ip kube mark-for-masquerade meta mark set meta mark or 0x4000",
             "add chain ip kube prerouting { type nat hook prerouting priority -100 ; }",
             "add chain ip kube output { type nat hook output priority -100 ; }",
             "add chain ip kube postrouting { type nat hook postrouting priority 100 ; }",
             "add rule ip kube prerouting ip daddr . meta l4proto . th dport vmap @service-ips",
             "add rule ip kube output ip daddr . meta l4proto . th dport vmap @service-ips",
             "add rule ip kube postrouting meta mark & 0x4000 != 0 masquerade fully-random"]
    for number in range(services):
        lines += nft_service(number, middle if middle and number == services // 2 else pods(number, endpoints))
    elements = (f"{service(number)} . tcp . 80 : goto service-{number}" for number in range(services))
    return "\n".join(lines) + f"\nadd element ip kube service-ips {{ {', '.join(elements)} }}\n"


def nft_change(number, found):
    return "\n".join(nft_service(number, found)) + "\n"
