/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/*
 * Clients that stay with their endpoints. The rules underneath have a memory of their own: a client whom they got, for
 * the endpoint cannot be carried to, stays theirs.
 */
#pragma once

#include "work.h"

INLINE int is_member(__u8 family, __u64 set, const struct affinity *at)
{
	struct member_key4 key4 = {.set = set, .address = at->address[0], .port = at->port};
	struct member_key6 key6 = {.set = set, .port = at->port};

	if (family == 4)
		return !!map_lookup(&members4, &key4);
	__builtin_memcpy(key6.address, at->address, 16);
	return !!map_lookup(&members6, &key6);
}

/* The endpoint of a client, as far as it is remembered and still one; port 0 if the rules know it. */
INLINE int ask_for(const struct tuple *tuple, const struct frontend *frontend, const struct choice *choice, struct work *work)
{
	struct tuple *to = &work->there.to;
	struct affinity *known;

	__builtin_memcpy(work->client.client, tuple->source, 16);
	work->client.identity = frontend->identity;
	work->client.local = choice->flags & CHOICE_LOCAL;
	work->client.family = tuple->family;
	known = map_lookup(&affinity, &work->client);
	if (!known)
		return 0;
	if (now_ns() - known->seen_ns > frontend->affinity_s * SECOND_NS ||
	    (known->port && !is_member(tuple->family, choice->set, known))) {
		map_delete(&affinity, &work->client);
		return 0;
	}
	known->seen_ns = now_ns();
	__builtin_memcpy(to->destination, known->address, 16);
	to->destination_port = known->port;
	return 1;
}

/* Remembers where a client goes, unless another of its connections was faster. */
INLINE int keep(struct work *work)
{
	const struct tuple *to = &work->there.to;
	struct affinity *at = &work->at;

	__builtin_memcpy(at->address, to->destination, 16);
	at->port = to->destination_port;
	at->zero = 0;
	at->zero_too = 0;
	at->seen_ns = now_ns();
	return !map_update(&affinity, &work->client, at, BPF_NOEXIST);
}
