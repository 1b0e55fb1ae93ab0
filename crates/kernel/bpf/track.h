/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/* Flows that are remembered. */
#pragma once

#include "packet.h"

static __u64 (*const now_ns)(void) = (void *)BPF_FUNC_ktime_get_coarse_ns;

#define SECOND_NS 1000000000ull
#define STREAM_NS (2 * SECOND_NS)

INLINE const struct forwarding *settings(void)
{
	__u32 zero = 0;

	return map_lookup(&forwarding, &zero);
}

INLINE int is_same(const __be32 *one, const __be32 *other)
{
	return one[0] == other[0] && one[1] == other[1] && one[2] == other[2] && one[3] == other[3];
}

/* The tuple of the answers to packets with this one. */
INLINE void turn(const struct tuple *tuple, struct tuple *turned)
{
	__builtin_memcpy(turned->source, tuple->destination, 16);
	__builtin_memcpy(turned->destination, tuple->source, 16);
	turned->source_port = tuple->destination_port;
	turned->destination_port = tuple->source_port;
	turned->protocol = tuple->protocol;
	turned->family = tuple->family;
	turned->zero = 0;
}

/* The entry of the other direction. */
INLINE struct track *other_way(const struct track *track)
{
	struct tuple key;

	turn(&track->to, &key);
	return map_lookup(&tracked, &key);
}

INLINE void forget(const struct tuple *tuple, const struct track *track)
{
	struct tuple key;

	turn(&track->to, &key);
	map_delete(&tracked, &key);
	map_delete(&tracked, tuple);
}

INLINE __u32 patience_s(__u8 protocol, __u32 flags)
{
	const struct forwarding *told = settings();

	if (!told)
		return 0;
	if (protocol == IPPROTO_UDP)
		return flags & TRACK_ANSWERED ? told->answered_s : told->asked_s;
	if (flags & (TRACK_FIN | TRACK_FIN_BACK))
		return told->closing_s;
	return flags & TRACK_ANSWERED ? told->open_s : told->opening_s;
}

/* Silent for too long, in both directions. */
INLINE int is_over(__u8 protocol, const struct track *track)
{
	__u64 patience_ns = patience_s(protocol, track->flags) * SECOND_NS;
	__u64 now = now_ns();
	const struct track *other;

	if (now - track->seen_ns <= patience_ns)
		return 0;
	other = other_way(track);
	return !other || now - other->seen_ns > patience_ns;
}

/*
 * Whether its endpoint still is one. Asked of UDP only: a TCP connection stays where it is. So no flow leads to an
 * endpoint that is gone, and nobody has to look for such flows.
 */
INLINE int is_stale4(const struct tuple *tuple, struct track *track)
{
	struct frontend_key4 at = {
		.address = tuple->destination[0], .port = tuple->destination_port, .protocol = tuple->protocol};
	struct member_key4 member = {.address = track->to.destination[0], .port = track->to.destination_port};
	struct frontend *frontend = map_lookup(&frontends4, &at);

	if (!frontend || frontend->affinity_s || track->audience >= AUDIENCES)
		return 1;
	member.set = frontend->choices[track->audience].set;
	if (member.set == track->set)
		return 0;
	track->set = member.set;
	return !map_lookup(&members4, &member);
}

INLINE int is_stale6(const struct tuple *tuple, struct track *track)
{
	struct frontend_key6 at = {.port = tuple->destination_port, .protocol = tuple->protocol};
	struct member_key6 member = {.port = track->to.destination_port};
	struct frontend *frontend;

	__builtin_memcpy(at.address, tuple->destination, 16);
	__builtin_memcpy(member.address, track->to.destination, 16);
	frontend = map_lookup(&frontends6, &at);
	if (!frontend || frontend->affinity_s || track->audience >= AUDIENCES)
		return 1;
	member.set = frontend->choices[track->audience].set;
	if (member.set == track->set)
		return 0;
	track->set = member.set;
	return !map_lookup(&members6, &member);
}

INLINE int is_stale(const struct tuple *tuple, struct track *track)
{
	if (tuple->protocol != IPPROTO_UDP || track->flags & TRACK_REPLY)
		return 0;
	return tuple->family == 4 ? is_stale4(tuple, track) : is_stale6(tuple, track);
}

/* A client may use a port again as soon as both sides have closed. */
INLINE int is_used_again(const struct packet *packet, const struct track *track)
{
	__u32 closed = TRACK_FIN | TRACK_FIN_BACK;

	return packet->tuple.protocol == IPPROTO_TCP && begins(packet) && (track->flags & closed) == closed;
}

/* Both directions learn what a TCP packet says of the connection's end. Forgets it with the last packet. */
INLINE void note_end(const struct packet *packet, struct track *track)
{
	struct track *other = other_way(track);

	if (!other || packet->flags & RST) {
		forget(&packet->tuple, track);
		return;
	}
	if (packet->flags & FIN) {
		track->flags |= TRACK_FIN;
		other->end = packet->next;
		other->flags |= TRACK_FIN_BACK;
	}
	if (track->flags & TRACK_FIN_BACK && (__s32)(packet->acknowledged - track->end) >= 0) {
		track->flags |= TRACK_HEARD;
		other->flags |= TRACK_HEARD_BACK;
	}
	if (track->flags & TRACK_HEARD && track->flags & TRACK_HEARD_BACK)
		forget(&packet->tuple, track);
}

/* One question with its answer is forgotten sooner than datagrams that go back and forth. */
INLINE int is_answered(const struct packet *packet, const struct track *track, __u64 now)
{
	if (!(track->flags & TRACK_REPLY) || track->flags & TRACK_ANSWERED)
		return 0;
	return packet->tuple.protocol == IPPROTO_TCP || now - track->begun_ns > STREAM_NS;
}

INLINE void note(const struct packet *packet, struct track *track)
{
	__u64 now = now_ns();

	if (now - track->seen_ns > SECOND_NS)
		track->seen_ns = now;
	if (is_answered(packet, track, now)) {
		struct track *other = other_way(track);

		if (other)
			other->flags |= TRACK_ANSWERED;
		track->flags |= TRACK_ANSWERED;
	}
	if (packet->tuple.protocol == IPPROTO_TCP &&
	    (packet->flags & (FIN | RST) || track->flags & (TRACK_FIN | TRACK_FIN_BACK)))
		note_end(packet, track);
}

/* What becomes of a packet, if that is known. Copied, for an entry that is forgotten may be another's at once. */
INLINE int recall(const struct packet *packet, struct tuple *to)
{
	struct track *track = map_lookup(&tracked, &packet->tuple);

	if (!track)
		return 0;
	if (is_over(packet->tuple.protocol, track) || is_used_again(packet, track) || is_stale(&packet->tuple, track)) {
		forget(&packet->tuple, track);
		return 0;
	}
	*to = track->to;
	note(packet, track);
	return 1;
}
