/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/* Sending a packet on its way. */
#pragma once

#include "route.h"

INLINE int to_neighbour(const struct way *way)
{
	struct bpf_redir_neigh next = {.nh_family = way->route.family};

	__builtin_memcpy(next.ipv6_nh, way->route.ipv6_dst, 16);
	return redirect_neighbour(way->route.ifindex, &next, sizeof(next), 0);
}

INLINE int to_link(struct __sk_buff *skb, const struct way *way)
{
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *ethernet = (void *)(long)skb->data;

	if ((void *)(ethernet + 1) > end)
		return DROP;
	__builtin_memcpy(ethernet->h_dest, way->route.dmac, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, way->route.smac, ETH_ALEN);
	if (way->audience == PODS)
		return redirect_peer(way->route.ifindex, 0);
	return redirect(way->route.ifindex, 0);
}

/* A packet of a flow that is carried, with its new tuple. Where there is no way any more, it ends here. */
INLINE int leave(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to)
{
	struct way way;

	if (packet->hops <= 1)
		return PASS;
	if (!find_way(skb, to, &way) || !write_packet(skb, packet, to))
		return DROP;
	count(packet->tuple.family == 4 ? PACKETS4 : PACKETS6);
	return way.known ? to_link(skb, &way) : to_neighbour(&way);
}
