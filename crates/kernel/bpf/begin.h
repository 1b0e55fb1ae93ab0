/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/* New flows: to which endpoint, and under which address. */
#pragma once

#include "affinity.h"
#include "direct.h"
#include "track.h"
#include "work.h"

/* Ports tried for one flow. */
#define TRIES 8

static void *(*const find_tcp)(void *context, struct bpf_sock_tuple *tuple, __u32 size, __u64 netns, __u64 flags) =
	(void *)BPF_FUNC_skc_lookup_tcp;
static void *(*const find_udp)(void *context, struct bpf_sock_tuple *tuple, __u32 size, __u64 netns, __u64 flags) =
	(void *)BPF_FUNC_sk_lookup_udp;
static long (*const release)(void *socket) = (void *)BPF_FUNC_sk_release;

INLINE struct frontend *frontend_of(const struct tuple *tuple)
{
	struct frontend_key4 key4 = {
		.address = tuple->destination[0], .port = tuple->destination_port, .protocol = tuple->protocol};
	struct frontend_key6 key6 = {.port = tuple->destination_port, .protocol = tuple->protocol};

	if (tuple->family == 4)
		return map_lookup(&frontends4, &key4);
	__builtin_memcpy(key6.address, tuple->destination, 16);
	return map_lookup(&frontends6, &key6);
}

INLINE int is_pod(__u8 family, const __be32 *address)
{
	struct range_key key = {.length = family == 4 ? 32 : 128};

	__builtin_memcpy(key.address, address, 16);
	return family == 4 ? !!map_lookup(&pods4, &key) : !!map_lookup(&pods6, &key);
}

/* Only TCP says where a flow begins: no answer to one that the rules underneath translate is taken for a first packet. */
INLINE int is_between_pods(const struct tuple *tuple)
{
	return tuple->protocol == IPPROTO_TCP && is_pod(tuple->family, tuple->source) &&
	       is_pod(tuple->family, tuple->destination);
}

/* Equal on all nodes, in all versions: they share the clients of an address. */
INLINE __u32 hash_of(const __be32 *client, __u32 ports)
{
	__u32 hash = 2166136261u;

	for (int part = 0; part < 4; part++)
		hash = (hash ^ client[part]) * 16777619u;
	hash = (hash ^ ports) * 16777619u;
	hash ^= hash >> 16;
	hash *= 0x85ebca6b;
	hash ^= hash >> 13;
	hash *= 0xc2b2ae35;
	hash ^= hash >> 16;
	return hash;
}

/* A client with affinity is led by its address alone: on every node to the same endpoint. */
INLINE __u32 draw(const struct tuple *tuple, const struct choice *choice, int stays)
{
	__u32 ports = stays ? 0 : ((__u32)tuple->source_port << 16) | tuple->destination_port;
	struct table *table = map_lookup(&tables, &choice->set);

	if (table) {
		__u32 place = hash_of(tuple->source, ports) % PLACES;

		/* The verifier does not follow how the compiler divides. */
		asm volatile("" : "+r"(place));
		if (place < PLACES)
			return table->places[place];
	}
	return random_u32() % choice->count;
}

/* Puts the endpoint's address and port in place of the frontend's. */
INLINE int choose(const struct tuple *tuple, const struct choice *choice, int stays, struct tuple *to)
{
	struct endpoint_key key = {.set = choice->set, .index = draw(tuple, choice, stays)};

	if (tuple->family == 4) {
		struct endpoint4 *endpoint = map_lookup(&endpoints4, &key);

		if (!endpoint)
			return 0;
		to->destination[0] = endpoint->address;
		to->destination_port = endpoint->port;
	} else {
		struct endpoint6 *endpoint = map_lookup(&endpoints6, &key);

		if (!endpoint)
			return 0;
		__builtin_memcpy(to->destination, endpoint->address, 16);
		to->destination_port = endpoint->port;
	}
	return 1;
}

/* Puts this node's address in place of the client's. */
INLINE int masquerade(struct tuple *to, const struct forwarding *told)
{
	if (to->family == 4)
		to->source[0] = told->address4;
	else
		__builtin_memcpy(to->source, told->address6, 16);
	return to->source[0] != 0;
}

/* Whether a socket of this node would get the answers. */
INLINE int has_socket(struct __sk_buff *skb, const struct tuple *answer)
{
	struct bpf_sock_tuple key = {};
	__u32 size;
	void *socket;

	if (answer->family == 4) {
		key.ipv4.saddr = answer->source[0];
		key.ipv4.daddr = answer->destination[0];
		key.ipv4.sport = answer->source_port;
		key.ipv4.dport = answer->destination_port;
		size = sizeof(key.ipv4);
	} else {
		__builtin_memcpy(key.ipv6.saddr, answer->source, 16);
		__builtin_memcpy(key.ipv6.daddr, answer->destination, 16);
		key.ipv6.sport = answer->source_port;
		key.ipv6.dport = answer->destination_port;
		size = sizeof(key.ipv6);
	}
	if (answer->protocol == IPPROTO_TCP)
		socket = find_tcp(skb, &key, size, BPF_F_CURRENT_NETNS, 0);
	else
		socket = find_udp(skb, &key, size, BPF_F_CURRENT_NETNS, 0);
	if (!socket)
		return 0;
	release(socket);
	return 1;
}

/* Takes the tuple of the answers, unless it is another flow's. */
INLINE int take(const struct tuple *answer, const struct track *track)
{
	struct track *taken;

	if (!map_update(&tracked, answer, track, BPF_NOEXIST))
		return 1;
	taken = map_lookup(&tracked, answer);
	if (!taken || !is_over(answer, taken))
		return 0;
	return !map_update(&tracked, answer, track, BPF_ANY);
}

/* Finds a port under which the answers are this flow's alone. The client's own, if it keeps its address. */
INLINE int take_port(struct __sk_buff *skb, struct tuple *to, const struct track *back, int masqueraded,
		     const struct forwarding *told)
{
	__u32 span = told->port_max - told->port_min + 1;
	struct tuple answer;

	for (int try = 0; try < TRIES; try++) {
		if (masqueraded || try) {
			if (!told->port_min)
				break;
			to->source_port = htons(told->port_min + random_u32() % span);
		}
		turn(to, &answer);
		if (masqueraded && has_socket(skb, &answer))
			continue;
		if (take(&answer, back))
			return 1;
	}
	count(PORTLESS);
	return 0;
}

/* The audience of a link's clients. Pods of other nodes come in from outside, too: the rules underneath know their due. */
INLINE int audience_of(struct __sk_buff *skb, const struct tuple *tuple, __u32 *audience)
{
	__u32 link = skb->ifindex;
	struct device *device = map_lookup(&devices, &link);

	if (!device || device->audience >= AUDIENCES)
		return 0;
	*audience = device->audience;
	return *audience != OUTSIDE || !is_pod(tuple->family, tuple->source);
}

/* Two entries: what becomes of the client's packets is in the work, with the endpoint and the client's own source. */
INLINE int remember(struct __sk_buff *skb, const struct packet *packet, struct work *work, int masqueraded)
{
	const struct forwarding *told = settings();
	struct track *there = &work->there, *back = &work->back;

	if (!told || (masqueraded && !masquerade(&there->to, told)))
		return 0;
	*back = *there;
	back->flags = TRACK_REPLY;
	back->first = begins(packet) ? packet->first : 0;
	turn(&packet->tuple, &back->to);
	if (!take_port(skb, &there->to, back, masqueraded, told))
		return 0;
	return !map_update(&tracked, &packet->tuple, there, BPF_ANY);
}

/*
 * A flow to no Service whose answers would be taken for those of one that is carried: a client may use a port to a
 * Service and to its endpoint at once. It gets another port.
 */
INLINE int is_in_between(const struct tuple *tuple)
{
	struct track *track;
	struct tuple answer;

	turn(tuple, &answer);
	track = map_lookup(&tracked, &answer);
	return track && track->flags & TRACK_REPLY && track->set && !is_over(&answer, track);
}

INLINE void set_out(const struct packet *packet, struct work *work)
{
	struct track *there = &work->there;

	work->direct = 0;
	__builtin_memset(there, 0, sizeof(*there));
	there->to = packet->tuple;
	there->begun_ns = there->seen_ns = now_ns();
}

/* Draws an endpoint to which there is a way. */
INLINE int find_endpoint(struct __sk_buff *skb, const struct packet *packet, const struct choice *choice, int stays,
			 struct work *work)
{
	struct tuple *to = &work->there.to;

	if (!choose(&packet->tuple, choice, stays, to))
		return 0;
	return find_way(skb, to, ANY_SIZE, &work->way) == SOMEWHERE;
}

/* The same, if the client is not known. Whom the rules get, for there is no way here, stays theirs. */
INLINE int find_usual_endpoint(struct __sk_buff *skb, const struct packet *packet, const struct frontend *frontend,
			       const struct choice *choice, struct work *work)
{
	struct tuple *to = &work->there.to;

	if (!ask_for(&packet->tuple, frontend, choice, work)) {
		if (!find_endpoint(skb, packet, choice, 1, work))
			to->destination_port = 0;
		if (!keep(work) && !ask_for(&packet->tuple, frontend, choice, work))
			return 0;
	}
	return to->destination_port && find_way(skb, to, ANY_SIZE, &work->way) == SOMEWHERE;
}

/*
 * Whether the endpoint's node can answer the client: it has a pod there and is another one, and the client is none of the
 * nodes, which would get the answer past the program.
 */
INLINE int goes_direct(const struct choice *choice, const struct work *work)
{
	const struct tuple *to = &work->there.to;

	return choice->flags & CHOICE_DIRECT && work->there.audience == OUTSIDE && is_pod(to->family, to->destination) &&
	       !is_node(to->source);
}

/* One entry, for the client's packets alone. */
INLINE int remember_direct(const struct packet *packet, struct work *work)
{
	struct track *there = &work->there;

	there->flags = TRACK_DIRECT;
	work->direct = TRACK_DIRECT;
	return !map_update(&tracked, &packet->tuple, there, BPF_ANY);
}

/* Leads a new flow to an endpoint of this frontend. */
INLINE int serve(struct __sk_buff *skb, const struct packet *packet, const struct frontend *frontend, struct work *work)
{
	struct track *there = &work->there;
	struct choice choice;
	int masqueraded;

	if (!audience_of(skb, &packet->tuple, &there->audience) || there->audience >= AUDIENCES)
		return 0;
	choice = frontend->choices[there->audience];
	if (!choice.count)
		return 0;
	if (frontend->affinity_s) {
		if (!find_usual_endpoint(skb, packet, frontend, &choice, work))
			return 0;
	} else if (!find_endpoint(skb, packet, &choice, 0, work)) {
		return 0;
	}
	there->set = terms(frontend, choice.set);
	masqueraded = choice.flags & CHOICE_MASQUERADE || is_same(there->to.source, there->to.destination);
	if (goes_direct(&choice, work)) {
		if (work->way.audience == PODS)
			masqueraded = 0;
		/* Who begins with too much for that is masqueraded. */
		else if (can_wrap(skb, packet, work, &there->to))
			return remember_direct(packet, work);
	}
	return remember(skb, packet, work, masqueraded);
}

INLINE void count_flow(const struct tuple *tuple, int is_led)
{
	if (is_led)
		count(tuple->family == 4 ? FLOWS4 : FLOWS6);
	else
		count(tuple->family == 4 ? DIRECT4 : DIRECT6);
}

/* New flows are led to endpoints. Of those between pods nothing changes but the way: past netfilter. */
INLINE int begin(struct __sk_buff *skb, const struct packet *packet, struct work *work, struct tuple *to)
{
	const struct tuple *tuple = &packet->tuple;
	struct frontend *frontend;

	if (!begins(packet) || packet->part == LATER || packet->hops <= 1)
		return 0;
	frontend = frontend_of(tuple);
	if (!frontend && !is_between_pods(tuple) && !is_in_between(tuple))
		return 0;
	set_out(packet, work);
	if (frontend && !serve(skb, packet, frontend, work)) {
		count(tuple->family == 4 ? LEFT4 : LEFT6);
		return 0;
	}
	if (!frontend && (!find_way(skb, tuple, ANY_SIZE, &work->way) || !remember(skb, packet, work, 0)))
		return 0;
	*to = work->there.to;
	count_flow(tuple, !!frontend);
	return 1;
}

/*
 * A packet to a frontend of another node, which has chosen this endpoint of ours. From here on it is as if it had come
 * to us: the endpoint's answers leave as the frontend's. In the middle of a connection, too, if its entries are lost.
 */
INLINE int take_over(struct __sk_buff *skb, const struct packet *packet, struct work *work, struct tuple *to)
{
	struct track *there = &work->there;

	if (recall(packet, work, to) && is_same(to->destination, work->told.destination) &&
	    to->destination_port == work->told.destination_port)
		return 1;
	set_out(packet, work);
	__builtin_memcpy(there->to.destination, work->told.destination, 16);
	there->to.destination_port = work->told.destination_port;
	there->audience = OUTSIDE;
	there->set = TOLD_SET;
	if (find_way(skb, &there->to, ANY_SIZE, &work->way) != SOMEWHERE || work->way.audience != PODS)
		return 0;
	if (!remember(skb, packet, work, 0))
		return 0;
	count(there->to.family == 4 ? FLOWS4 : FLOWS6);
	*to = there->to;
	return 1;
}
