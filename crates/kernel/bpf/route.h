/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/* The way out of this node. */
#pragma once

#include "packet.h"

#define AF_INET 2
#define AF_INET6 10

static long (*const look_up_route)(void *context, struct bpf_fib_lookup *route, __u32 size, __u32 flags) =
	(void *)BPF_FUNC_fib_lookup;
static long (*const redirect)(__u32 link, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*const redirect_peer)(__u32 link, __u64 flags) = (void *)BPF_FUNC_redirect_peer;
static long (*const redirect_neighbour)(__u32 link, struct bpf_redir_neigh *next, __u32 size, __u64 flags) =
	(void *)BPF_FUNC_redirect_neigh;

/* The link by which packets with a tuple leave, and the next hop. */
struct way {
	struct bpf_fib_lookup route;
	__u32 audience;
	int known; /* the next hop's hardware address */
};

/* Kinds of ways: none; there is one; there is one, but not for packets of that size. */
enum { NOWHERE = 0, SOMEWHERE, TOO_NARROW };

/* Any size will do. */
#define ANY_SIZE 1

/* Only links where the answers come in by this program, too. */
INLINE int find_way(struct __sk_buff *skb, const struct tuple *to, __u32 size, struct way *way)
{
	struct bpf_fib_lookup *route = &way->route;
	struct device *device;
	__u32 link;
	long found;

	__builtin_memset(way, 0, sizeof(*way));
	route->ifindex = skb->ifindex;
	route->tot_len = size > 0xffff ? 0xffff : size;
	route->l4_protocol = to->protocol;
	route->sport = to->source_port;
	route->dport = to->destination_port;
	if (to->family == 4) {
		route->family = AF_INET;
		route->ipv4_src = to->source[0];
		route->ipv4_dst = to->destination[0];
	} else {
		route->family = AF_INET6;
		__builtin_memcpy(route->ipv6_src, to->source, 16);
		__builtin_memcpy(route->ipv6_dst, to->destination, 16);
	}
	found = look_up_route(skb, route, sizeof(*route), 0);
	if (found == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return TOO_NARROW;
	if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH)
		return NOWHERE;
	link = route->ifindex;
	device = map_lookup(&devices, &link);
	if (!device)
		return NOWHERE;
	way->audience = device->audience;
	way->known = found == BPF_FIB_LKUP_RET_SUCCESS;
	return SOMEWHERE;
}
