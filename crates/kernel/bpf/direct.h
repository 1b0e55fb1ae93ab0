/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/*
 * Answers that do not come back this way. A client's packet goes to the endpoint's node as it came, in another packet
 * (IP in IP) that is addressed to the endpoint; the endpoint's port is the identification (IPv4) or the flow label of
 * that. What does not fit goes on by itself, with the endpoint's address and port: its node knows the flow by then.
 */
#pragma once

#include "leave.h"
#include "track.h"

#define HOPS 64
#define DO_NOT_FRAGMENT 0x4000

static long (*const adjust_room)(struct __sk_buff *skb, __s32 more, __u32 where, __u64 flags) =
	(void *)BPF_FUNC_skb_adjust_room;

struct wrapping4 {
	struct ethhdr ethernet;
	struct iphdr ip;
} __attribute__((packed));

struct wrapping6 {
	struct ethhdr ethernet;
	struct ipv6hdr ip;
} __attribute__((packed));

INLINE __u32 wrapping_size(__u8 family)
{
	return family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
}

/* Whether a packet fits, with what is around it; finds the way. Packets that the kernel has put together do not. */
INLINE int can_wrap(struct __sk_buff *skb, const struct packet *packet, struct work *work, const struct tuple *to)
{
	const struct forwarding *told = settings();

	if (!told || packet->part != WHOLE || skb->gso_size)
		return 0;
	if (to->family == 4 ? !told->address4 : !told->address6[0])
		return 0;
	return find_way(skb, to, packet->size + wrapping_size(to->family), &work->way) == SOMEWHERE;
}

INLINE int wrap4(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to)
{
	const struct forwarding *told = settings();
	struct wrapping4 *head;

	if (!told || adjust_room(skb, sizeof(head->ip), BPF_ADJ_ROOM_MAC, 0))
		return 0;
	head = (void *)(long)skb->data;
	if ((void *)(head + 1) > (void *)(long)skb->data_end)
		return 0;
	head->ip = (struct iphdr){.version = 4, .ihl = 5, .ttl = HOPS, .protocol = IPPROTO_IPIP};
	head->ip.id = to->destination_port;
	head->ip.frag_off = htons(DO_NOT_FRAGMENT);
	head->ip.tot_len = htons(packet->size + sizeof(head->ip));
	head->ip.saddr = told->address4;
	head->ip.daddr = to->destination[0];
	head->ip.check = ~fold(difference(0, 0, (void *)&head->ip, sizeof(head->ip), 0));
	return 1;
}

INLINE int wrap6(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to)
{
	const struct forwarding *told = settings();
	struct wrapping6 *head;

	if (!told || adjust_room(skb, sizeof(head->ip), BPF_ADJ_ROOM_MAC, 0))
		return 0;
	head = (void *)(long)skb->data;
	if ((void *)(head + 1) > (void *)(long)skb->data_end)
		return 0;
	head->ip = (struct ipv6hdr){.version = 6, .nexthdr = IPPROTO_IPV6, .hop_limit = HOPS};
	__builtin_memcpy(head->ip.flow_lbl + 1, &to->destination_port, 2);
	head->ip.payload_len = htons(packet->size);
	__builtin_memcpy(&head->ip.saddr, told->address6, 16);
	__builtin_memcpy(&head->ip.daddr, to->destination, 16);
	return 1;
}

/* Sends a packet to the endpoint's node by the way that was found. */
INLINE int leave_wrapped(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to, struct way *way)
{
	if (!(to->family == 4 ? wrap4(skb, packet, to) : wrap6(skb, packet, to)))
		return DROP;
	return pass_on(skb, way);
}

INLINE int read_wrapping4(struct __sk_buff *skb, struct tuple *told)
{
	struct wrapping4 *head = (void *)(long)skb->data;

	if ((void *)(head + 1) > (void *)(long)skb->data_end || head->ip.ihl != 5 || head->ip.frag_off & htons(0x3fff))
		return 0;
	told->source[0] = head->ip.saddr;
	told->destination[0] = head->ip.daddr;
	told->destination_port = head->ip.id;
	return 1;
}

INLINE int read_wrapping6(struct __sk_buff *skb, struct tuple *told)
{
	struct wrapping6 *head = (void *)(long)skb->data;

	if ((void *)(head + 1) > (void *)(long)skb->data_end)
		return 0;
	__builtin_memcpy(told->source, &head->ip.saddr, 16);
	__builtin_memcpy(told->destination, &head->ip.daddr, 16);
	__builtin_memcpy(&told->destination_port, head->ip.flow_lbl + 1, 2);
	return 1;
}

INLINE int is_node(const __be32 *address)
{
	struct address key;

	__builtin_memcpy(key.parts, address, 16);
	return !!map_lookup(&nodes, &key);
}

/* Takes the client's packet out. Only nodes may say which endpoint it gets. */
INLINE int unwrap(struct __sk_buff *skb, struct work *work)
{
	__u32 link = skb->ifindex, size = wrapping_size(skb->protocol == htons(ETH_P_IP) ? 4 : 6);
	struct device *device = map_lookup(&devices, &link);
	struct tuple *told = &work->told;

	if (!device || device->audience != OUTSIDE)
		return 0;
	__builtin_memset(told, 0, sizeof(*told));
	if (!(skb->protocol == htons(ETH_P_IP) ? read_wrapping4(skb, told) : read_wrapping6(skb, told)))
		return 0;
	return is_node(told->source) && !adjust_room(skb, -(__s32)size, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO);
}
