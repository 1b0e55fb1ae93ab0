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

INLINE int pass_on(struct __sk_buff *skb, const struct way *way)
{
	count(skb->protocol == htons(ETH_P_IP) ? PACKETS4 : PACKETS6);
	return way->known ? to_link(skb, way) : to_neighbour(way);
}
