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
#include "leave.h"
#include "track.h"

LICENSE("Dual MIT/GPL");

SECTION("classifier") int forward(struct __sk_buff *skb)
{
	struct packet packet = {};
	struct tuple to;

	if (!read_packet(skb, &packet))
		return PASS;
	if (!recall(&packet, &to) && !begin(skb, &packet, &to))
		return PASS;
	note_part(&packet);
	return leave(skb, &packet, &to);
}
