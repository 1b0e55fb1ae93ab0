/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/*
 * ICMP errors. Others' about packets of flows go on to who sent those, under the addresses that he knows. And a packet
 * that does not fit the way out is told of, for nobody else sees it.
 */
#pragma once

#include "direct.h"
#include "track.h"
#include "work.h"

/* Types of errors: RFC 792, RFC 4443. */
#define UNREACHABLE4 3
#define FRAGMENTATION_NEEDED 4
#define EXPIRED4 11
#define PARAMETER4 12
#define UNREACHABLE6 1
#define TOO_BIG6 2
#define PARAMETER6 4

/* Bytes quoted of a packet that is too big: its headers, and no more than a packet may have anywhere. */
#define QUOTED 128

static long (*const change_tail)(struct __sk_buff *skb, __u32 length, __u64 flags) = (void *)BPF_FUNC_skb_change_tail;

struct icmp_header {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 rest;
};

struct heading4 {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct icmp_header icmp;
	struct iphdr inner;
	__be16 ports[2];
} __attribute__((packed));

struct heading6 {
	struct ethhdr ethernet;
	struct ipv6hdr ip;
	struct icmp_header icmp;
	struct ipv6hdr inner;
	__be16 ports[2];
} __attribute__((packed));

INLINE int is_carried(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP;
}

/* An endpoint speaks as the frontend; routers speak for themselves. */
INLINE int translate(struct error *error)
{
	struct track *track;
	struct tuple key;

	turn(&error->inner, &key);
	track = map_lookup(&tracked, &key);
	if (!track)
		return 0;
	turn(&track->to, &error->inner_to);
	error->outer_to = error->outer;
	__builtin_memcpy(error->outer_to.destination, track->to.destination, 16);
	if (is_same(error->outer.source, error->inner.destination))
		__builtin_memcpy(error->outer_to.source, track->to.source, 16);
	return 1;
}

INLINE __u32 change_of_addresses(const struct tuple *from, const struct tuple *to, __u32 seed)
{
	return difference(from->source, 32, to->source, 32, seed);
}

INLINE __u32 change_of_ports(const struct tuple *from, const struct tuple *to, __u32 seed)
{
	return difference(&from->source_port, 4, &to->source_port, 4, seed);
}

INLINE int read_error4(const struct heading4 *head, struct error *error)
{
	if (head->ip.ihl != 5 || head->ip.frag_off & htons(0x3fff) || head->ip.ttl <= 1)
		return 0;
	if (head->icmp.type != UNREACHABLE4 && head->icmp.type != EXPIRED4 && head->icmp.type != PARAMETER4)
		return 0;
	if (head->inner.ihl != 5 || !is_carried(head->inner.protocol) || head->inner.frag_off & htons(0x1fff))
		return 0;
	error->outer.source[0] = head->ip.saddr;
	error->outer.destination[0] = head->ip.daddr;
	error->inner.source[0] = head->inner.saddr;
	error->inner.destination[0] = head->inner.daddr;
	error->inner.source_port = head->ports[0];
	error->inner.destination_port = head->ports[1];
	error->inner.protocol = head->inner.protocol;
	error->inner.family = error->outer.family = 4;
	error->outer.protocol = IPPROTO_ICMP;
	return 1;
}

INLINE int carry_error4(struct __sk_buff *skb, struct error *error, struct way *way)
{
	struct heading4 *head;

	if (skb->data_end - skb->data < sizeof(*head) && pull_data(skb, sizeof(*head)))
		return PASS;
	head = (void *)(long)skb->data;
	if ((void *)(head + 1) > (void *)(long)skb->data_end || !read_error4(head, error))
		return PASS;
	if (!translate(error) || find_way(skb, &error->outer_to, ANY_SIZE, way) != SOMEWHERE)
		return PASS;
	head->inner.saddr = error->inner_to.source[0];
	head->inner.daddr = error->inner_to.destination[0];
	head->inner.check = corrected(head->inner.check, change_of_addresses(&error->inner, &error->inner_to, 0));
	head->ports[0] = error->inner_to.source_port;
	head->ports[1] = error->inner_to.destination_port;
	/* The sum of the header inside has taken up its addresses. */
	head->icmp.checksum = corrected(head->icmp.checksum, change_of_ports(&error->inner, &error->inner_to, 0));
	head->ip.saddr = error->outer_to.source[0];
	head->ip.daddr = error->outer_to.destination[0];
	head->ip.check = corrected(head->ip.check, change_of_addresses(&error->outer, &error->outer_to, 0));
	head->ip.ttl--;
	head->ip.check = corrected(head->ip.check, (__u16)~htons(0x0100));
	return pass_on(skb, way);
}

INLINE int read_error6(const struct heading6 *head, struct error *error)
{
	if (head->ip.hop_limit <= 1 || !is_carried(head->inner.nexthdr))
		return 0;
	if (head->icmp.type < UNREACHABLE6 || head->icmp.type > PARAMETER6)
		return 0;
	__builtin_memcpy(error->outer.source, &head->ip.saddr, 16);
	__builtin_memcpy(error->outer.destination, &head->ip.daddr, 16);
	__builtin_memcpy(error->inner.source, &head->inner.saddr, 16);
	__builtin_memcpy(error->inner.destination, &head->inner.daddr, 16);
	error->inner.source_port = head->ports[0];
	error->inner.destination_port = head->ports[1];
	error->inner.protocol = head->inner.nexthdr;
	error->inner.family = error->outer.family = 6;
	error->outer.protocol = IPPROTO_ICMPV6;
	return 1;
}

INLINE int carry_error6(struct __sk_buff *skb, struct error *error, struct way *way)
{
	struct heading6 *head;
	__u32 change;

	if (skb->data_end - skb->data < sizeof(*head) && pull_data(skb, sizeof(*head)))
		return PASS;
	head = (void *)(long)skb->data;
	if ((void *)(head + 1) > (void *)(long)skb->data_end || !read_error6(head, error))
		return PASS;
	if (!translate(error) || find_way(skb, &error->outer_to, ANY_SIZE, way) != SOMEWHERE)
		return PASS;
	change = change_of_addresses(&error->outer, &error->outer_to, 0);
	change = change_of_addresses(&error->inner, &error->inner_to, change);
	change = change_of_ports(&error->inner, &error->inner_to, change);
	__builtin_memcpy(&head->inner.saddr, error->inner_to.source, 16);
	__builtin_memcpy(&head->inner.daddr, error->inner_to.destination, 16);
	head->ports[0] = error->inner_to.source_port;
	head->ports[1] = error->inner_to.destination_port;
	head->icmp.checksum = corrected(head->icmp.checksum, change);
	__builtin_memcpy(&head->ip.saddr, error->outer_to.source, 16);
	__builtin_memcpy(&head->ip.daddr, error->outer_to.destination, 16);
	head->ip.hop_limit--;
	return pass_on(skb, way);
}

INLINE int carry_error(struct __sk_buff *skb, struct work *work)
{
	__builtin_memset(&work->error, 0, sizeof(work->error));
	if (skb->protocol == htons(ETH_P_IP))
		return carry_error4(skb, &work->error, &work->way);
	return carry_error6(skb, &work->error, &work->way);
}

/* Sends a packet back by the link that it came by. */
INLINE int send_back(struct __sk_buff *skb, struct ethhdr *ethernet)
{
	__u8 peer[ETH_ALEN];

	__builtin_memcpy(peer, ethernet->h_source, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, ethernet->h_dest, ETH_ALEN);
	__builtin_memcpy(ethernet->h_dest, peer, ETH_ALEN);
	return redirect(skb->ifindex, 0);
}

/* Makes room for more headers in front of what is quoted, all of it in reach. */
INLINE int make_room(struct __sk_buff *skb, __u32 headers)
{
	return !change_tail(skb, ETH_HLEN + QUOTED, 0) && !adjust_room(skb, headers, BPF_ADJ_ROOM_MAC, 0) &&
	       !pull_data(skb, ETH_HLEN + headers + QUOTED);
}

/* The node speaks for itself, where it has an address. */
INLINE int tell_too_big4(struct __sk_buff *skb, const struct packet *packet, __u32 most)
{
	const struct forwarding *told = settings();
	struct heading4 *head;
	void *quoted;

	if (!told || !make_room(skb, sizeof(head->ip) + sizeof(head->icmp)))
		return DROP;
	head = (void *)(long)skb->data;
	quoted = &head->inner;
	if (quoted + QUOTED > (void *)(long)skb->data_end)
		return DROP;
	head->ip = (struct iphdr){.version = 4, .ihl = 5, .ttl = HOPS, .protocol = IPPROTO_ICMP};
	head->ip.tot_len = htons(sizeof(head->ip) + sizeof(head->icmp) + QUOTED);
	head->ip.saddr = told->address4 ? told->address4 : packet->tuple.destination[0];
	head->ip.daddr = packet->tuple.source[0];
	head->ip.check = ~fold(difference(0, 0, (void *)&head->ip, sizeof(head->ip), 0));
	head->icmp = (struct icmp_header){.type = UNREACHABLE4, .code = FRAGMENTATION_NEEDED, .rest = htonl(most)};
	head->icmp.checksum = ~fold(difference(0, 0, (void *)&head->icmp, sizeof(head->icmp) + QUOTED, 0));
	return send_back(skb, &head->ethernet);
}

INLINE int tell_too_big6(struct __sk_buff *skb, const struct packet *packet, __u32 most)
{
	const struct forwarding *told = settings();
	__u32 length = sizeof(struct icmp_header) + QUOTED;
	struct heading6 *head;
	void *quoted;
	__u32 sum;

	if (!told || !make_room(skb, sizeof(head->ip) + sizeof(head->icmp)))
		return DROP;
	head = (void *)(long)skb->data;
	quoted = &head->inner;
	if (quoted + QUOTED > (void *)(long)skb->data_end)
		return DROP;
	head->ip = (struct ipv6hdr){
		.version = 6, .payload_len = htons(length), .nexthdr = IPPROTO_ICMPV6, .hop_limit = HOPS};
	__builtin_memcpy(&head->ip.saddr, told->address6[0] ? told->address6 : packet->tuple.destination, 16);
	__builtin_memcpy(&head->ip.daddr, packet->tuple.source, 16);
	head->icmp = (struct icmp_header){.type = TOO_BIG6, .rest = htonl(most)};
	sum = difference(0, 0, (void *)&head->ip.saddr, 32, htonl(length));
	sum = difference(0, 0, (void *)&head->icmp, sizeof(head->icmp) + QUOTED, sum);
	head->icmp.checksum = ~fold(fold(sum) + htons(IPPROTO_ICMPV6));
	return send_back(skb, &head->ethernet);
}

/* Parts behind the first have no ports that their sender would know them by. */
INLINE int tell_too_big(struct __sk_buff *skb, const struct packet *packet, __u32 most)
{
	if (packet->part == LATER)
		return DROP;
	if (packet->tuple.family == 4)
		return tell_too_big4(skb, packet, most);
	return tell_too_big6(skb, packet, most);
}
