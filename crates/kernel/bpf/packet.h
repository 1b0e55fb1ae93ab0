/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/* Reading packets, and writing them anew. */
#pragma once

#include "forward.h"

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#define PASS TC_ACT_UNSPEC
#define DROP TC_ACT_SHOT

#define FIN 0x01
#define SYN 0x02
#define RST 0x04
#define ACK 0x10

static long (*const pull_data)(struct __sk_buff *skb, __u32 length) = (void *)BPF_FUNC_skb_pull_data;
static long (*const replace_checksum)(struct __sk_buff *skb, __u32 at, __u64 from, __u64 to, __u64 flags) =
	(void *)BPF_FUNC_l4_csum_replace;
static __s64 (*const difference)(const void *from, __u32 from_size, const void *to, __u32 to_size, __u32 seed) =
	(void *)BPF_FUNC_csum_diff;

/* A packet of a flow. */
struct packet {
	struct tuple tuple;
	__u32 transport; /* where its header begins */
	__u32 length;    /* of header and payload together */
	__u32 size;      /* from the IP header on; of the largest one, where the kernel has put packets together */
	__u32 next;      /* in order after this packet, TCP's */
	__u32 first;     /* what the answer to it acknowledges at least, if it is TCP's first */
	__u32 acknowledged;
	__u32 headers; /* from the IP header to the payload */
	__u8 flags; /* TCP's */
	__u8 hops;  /* left */
	__u8 part;  /* of a datagram, or WHOLE */
	__u8 zero;
	__be32 id;  /* of the datagram that it is a part of */
};

/* Kinds of parts: only the first has ports. */
enum { WHOLE = 0, FIRST, LATER };

struct part_header {
	__u8 protocol;
	__u8 zero;
	__be16 offset;
	__be32 id;
};

INLINE int begins(const struct packet *packet)
{
	return packet->tuple.protocol == IPPROTO_UDP || (packet->flags & (SYN | ACK | RST | FIN)) == SYN;
}

INLINE int read_ports(void *data, void *end, struct packet *packet)
{
	struct tuple *tuple = &packet->tuple;

	if (tuple->protocol == IPPROTO_UDP) {
		struct udphdr *udp = data + packet->transport;

		if ((void *)(udp + 1) > end)
			return 0;
		tuple->source_port = udp->source;
		tuple->destination_port = udp->dest;
		packet->headers = packet->transport - ETH_HLEN + sizeof(*udp);
		return 1;
	}
	if (tuple->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = data + packet->transport;

		if ((void *)(tcp + 1) > end)
			return 0;
		tuple->source_port = tcp->source;
		tuple->destination_port = tcp->dest;
		packet->headers = packet->transport - ETH_HLEN + tcp->doff * 4;
		packet->flags = ((__u8 *)tcp)[13];
		packet->acknowledged = htonl(tcp->ack_seq);
		packet->first = htonl(tcp->seq) + 1;
		packet->next = htonl(tcp->seq) + packet->length - tcp->doff * 4;
		if (packet->flags & (SYN | FIN))
			packet->next++;
		return 1;
	}
	return 0;
}

INLINE void part_key(const struct packet *packet, struct fragment_key *key)
{
	__builtin_memcpy(key->source, packet->tuple.source, 16);
	__builtin_memcpy(key->destination, packet->tuple.destination, 16);
	key->id = packet->id;
	key->protocol = packet->tuple.protocol;
	key->family = packet->tuple.family;
	key->zero = 0;
}

/* Later parts have the ports of the first, if that came before them. TCP does not send parts. */
INLINE int read_part(void *data, void *end, struct packet *packet)
{
	struct fragment_key key;
	struct fragment *first;

	if (packet->part != WHOLE && packet->tuple.protocol != IPPROTO_UDP)
		return 0;
	if (packet->part != LATER)
		return read_ports(data, end, packet);
	part_key(packet, &key);
	first = map_lookup(&fragments, &key);
	if (!first)
		return 0;
	packet->tuple.source_port = first->source_port;
	packet->tuple.destination_port = first->destination_port;
	return 1;
}

/* Remembers the ports for the parts that follow. */
INLINE void note_part(const struct packet *packet)
{
	struct fragment ports = {packet->tuple.source_port, packet->tuple.destination_port};
	struct fragment_key key;

	if (packet->part != FIRST)
		return;
	part_key(packet, &key);
	map_update(&fragments, &key, &ports, BPF_ANY);
}

INLINE int read_packet4(void *data, void *end, struct packet *packet)
{
	struct iphdr *ip = data + ETH_HLEN;

	if ((void *)(ip + 1) > end)
		return 0;
	/* Options are for those underneath. */
	if (ip->ihl != 5)
		return 0;
	if (ip->frag_off & htons(0x1fff))
		packet->part = LATER;
	else if (ip->frag_off & htons(0x2000))
		packet->part = FIRST;
	packet->id = ip->id;
	packet->tuple.source[0] = ip->saddr;
	packet->tuple.destination[0] = ip->daddr;
	packet->tuple.protocol = ip->protocol;
	packet->tuple.family = 4;
	packet->hops = ip->ttl;
	packet->transport = ETH_HLEN + sizeof(*ip);
	packet->size = htons(ip->tot_len);
	packet->length = packet->size - sizeof(*ip);
	return read_part(data, end, packet);
}

INLINE int read_packet6(void *data, void *end, struct packet *packet)
{
	struct ipv6hdr *ip = data + ETH_HLEN;

	if ((void *)(ip + 1) > end)
		return 0;
	__builtin_memcpy(packet->tuple.source, &ip->saddr, 16);
	__builtin_memcpy(packet->tuple.destination, &ip->daddr, 16);
	packet->tuple.protocol = ip->nexthdr;
	packet->tuple.family = 6;
	packet->hops = ip->hop_limit;
	packet->transport = ETH_HLEN + sizeof(*ip);
	packet->length = htons(ip->payload_len);
	packet->size = packet->length + sizeof(*ip);
	if (ip->nexthdr == IPPROTO_FRAGMENT) {
		struct part_header *part = (void *)(ip + 1);

		if ((void *)(part + 1) > end)
			return 0;
		packet->tuple.protocol = part->protocol;
		packet->part = part->offset & htons(0xfff8) ? LATER : FIRST;
		packet->id = part->id;
		packet->transport += sizeof(*part);
	}
	return read_part(data, end, packet);
}

/* Whether it is of a kind that is carried at all. */
INLINE int read_packet(struct __sk_buff *skb, struct packet *packet)
{
	__u32 headers = ETH_HLEN + sizeof(struct ipv6hdr) + sizeof(struct part_header) + sizeof(struct tcphdr);
	void *data, *end;

	if (skb->protocol != htons(ETH_P_IP) && skb->protocol != htons(ETH_P_IPV6))
		return 0;
	if (skb->data_end - skb->data < headers)
		pull_data(skb, skb->len < headers ? skb->len : headers);
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (!(skb->protocol == htons(ETH_P_IP) ? read_packet4(data, end, packet) : read_packet6(data, end, packet)))
		return 0;
	if (skb->gso_size)
		packet->size = packet->headers + skb->gso_size;
	return 1;
}

INLINE __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* Adds a difference to the sum of a header. */
INLINE __u16 corrected(__u16 check, __u32 change)
{
	__u32 sum = (__u16)~check;

	sum += change & 0xffff;
	sum += change >> 16;
	return ~fold(sum);
}

INLINE int write_checksums(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to, __u32 addresses)
{
	const struct tuple *from = &packet->tuple;
	__u32 ports = difference(&from->source_port, 4, &to->source_port, 4, 0);
	__u32 at = packet->transport;
	__u64 flags = 0;

	if (from->protocol == IPPROTO_UDP) {
		at += __builtin_offsetof(struct udphdr, check);
		flags = BPF_F_MARK_MANGLED_0;
	} else {
		at += __builtin_offsetof(struct tcphdr, check);
	}
	return !replace_checksum(skb, at, 0, addresses, flags | BPF_F_PSEUDO_HDR) &&
	       !replace_checksum(skb, at, 0, ports, flags);
}

/* Gives a packet another tuple, and one hop less. Its payload and its family stay. */
INLINE int write_packet(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to)
{
	__u32 addresses = difference(packet->tuple.source, 32, to->source, 32, 0);
	void *data, *end;
	__be16 *ports;

	if (packet->part != LATER && !write_checksums(skb, packet, to, addresses))
		return 0;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (packet->tuple.family == 4) {
		struct iphdr *ip = data + ETH_HLEN;

		if ((void *)(ip + 1) > end)
			return 0;
		ip->saddr = to->source[0];
		ip->daddr = to->destination[0];
		ip->check = corrected(ip->check, addresses);
		ip->ttl--;
		/* The next sixteen bits of the header hold the hops in their higher half. */
		ip->check = corrected(ip->check, (__u16)~htons(0x0100));
	} else {
		struct ipv6hdr *ip = data + ETH_HLEN;

		if ((void *)(ip + 1) > end)
			return 0;
		__builtin_memcpy(&ip->saddr, to->source, 16);
		__builtin_memcpy(&ip->daddr, to->destination, 16);
		ip->hop_limit--;
	}
	if (packet->part == LATER)
		return 1;
	ports = data + (packet->transport & 0x7f);
	if ((void *)(ports + 2) > end)
		return 0;
	ports[0] = to->source_port;
	ports[1] = to->destination_port;
	return 1;
}
