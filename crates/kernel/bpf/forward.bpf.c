/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/*
 * Leads packets that come in at this node's links to endpoints, and the answers back, past netfilter and routing.
 *
 * A flow has two entries: what becomes of the client's packets, and of the endpoint's. Both are applied where a packet
 * comes in, so the rules underneath see neither. What is not carried completely is not touched: they have it all.
 *
 * bpf_fib_lookup is for programs under the GPL, hence this file's choice of licences.
 */
#include "begin.h"
#include "errors.h"
#include "leave.h"
#include "track.h"

LICENSE("Dual MIT/GPL");

static long (*const load_bytes)(const void *context, __u32 at, void *to, __u32 length) =
	(void *)BPF_FUNC_skb_load_bytes;

/* Each with a stack of its own. */
static __attribute__((noinline)) int tell(struct __sk_buff *skb)
{
	struct work *work = work_of_this_cpu();

	return work ? carry_error(skb, work) : PASS;
}

/* A packet of a flow that is carried, with its new tuple. Where there is no way any more, it ends here. */
INLINE int leave(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to, struct way *way)
{
	int found;

	if (packet->hops <= 1)
		return PASS;
	found = find_way(skb, to, packet->size, way);
	if (found == TOO_NARROW)
		return tell_too_big(skb, packet, way->route.mtu_result);
	if (found != SOMEWHERE || !write_packet(skb, packet, to))
		return DROP;
	return pass_on(skb, way);
}

/* The client's packet as it came, if it fits; else with its new tuple, as any other. */
INLINE int leave_direct(struct __sk_buff *skb, const struct packet *packet, const struct tuple *to, struct work *work)
{
	if (packet->hops > 1 && can_wrap(skb, packet, work, to))
		return leave_wrapped(skb, packet, to, &work->way);
	return leave(skb, packet, to, &work->way);
}

static __attribute__((noinline)) int carry(struct __sk_buff *skb)
{
	struct work *work = work_of_this_cpu();
	struct packet packet = {};
	struct tuple to;

	if (!work || !read_packet(skb, &packet))
		return PASS;
	if (is_leaving() && packet.tuple.protocol == IPPROTO_UDP)
		return PASS;
	if (!recall(&packet, work, &to) && (is_leaving() || !begin(skb, &packet, work, &to)))
		return PASS;
	note_part(&packet);
	return work->direct ? leave_direct(skb, &packet, &to, work) : leave(skb, &packet, &to, &work->way);
}

/* What another node has sent on for a client. */
static __attribute__((noinline)) int carry_told(struct __sk_buff *skb)
{
	struct work *work = work_of_this_cpu();
	struct packet packet = {};
	struct tuple to;

	if (!work || !unwrap(skb, work))
		return PASS;
	/* Its destination is the other node: underneath it would go back there. */
	if (!read_packet(skb, &packet) || packet.hops <= 1 || !take_over(skb, &packet, work, &to))
		return DROP;
	return leave(skb, &packet, &to, &work->way);
}

INLINE int protocol_of(struct __sk_buff *skb, __u8 *protocol)
{
	__u32 at = skb->protocol == htons(ETH_P_IP) ? ETH_HLEN + __builtin_offsetof(struct iphdr, protocol)
						    : ETH_HLEN + __builtin_offsetof(struct ipv6hdr, nexthdr);

	return !load_bytes(skb, at, protocol, 1);
}

SECTION("classifier") int forward(struct __sk_buff *skb)
{
	__u8 protocol;

	if (skb->protocol != htons(ETH_P_IP) && skb->protocol != htons(ETH_P_IPV6))
		return PASS;
	if (!protocol_of(skb, &protocol))
		return PASS;
	if (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_FRAGMENT)
		return carry(skb);
	if (protocol == (skb->protocol == htons(ETH_P_IP) ? IPPROTO_ICMP : IPPROTO_ICMPV6))
		return tell(skb);
	if (protocol == (skb->protocol == htons(ETH_P_IP) ? IPPROTO_IPIP : IPPROTO_IPV6))
		return carry_told(skb);
	return PASS;
}
