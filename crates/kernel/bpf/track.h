/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/* Flows that are remembered. */
#pragma once

#include "work.h"

#define STREAM_NS (2 * SECOND_NS)

INLINE const struct forwarding *settings(void)
{
	__u32 zero = 0;

	return map_lookup(&forwarding, &zero);
}

/* The rules underneath take over, but for connections that they know nothing of. */
INLINE int is_leaving(void)
{
	const struct forwarding *told = settings();

	return !told || told->leaving;
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

/* Whether an entry is of the direction opposite to packets with this tuple. */
INLINE int leads_back(const struct track *other, const struct tuple *tuple)
{
	return is_same(other->to.destination, tuple->source) && is_same(other->to.source, tuple->destination) &&
	       other->to.destination_port == tuple->source_port && other->to.source_port == tuple->destination_port;
}

/* The entry of the other direction. In its place may be another flow's, if it was forgotten. */
INLINE struct track *other_way(const struct tuple *tuple, const struct track *track)
{
	struct track *other;
	struct tuple key;

	turn(&track->to, &key);
	other = map_lookup(&tracked, &key);
	return other && leads_back(other, tuple) ? other : 0;
}

INLINE void forget(const struct tuple *tuple, const struct track *track)
{
	struct tuple key;

	turn(&track->to, &key);
	if (other_way(tuple, track))
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
INLINE int is_over(const struct tuple *tuple, const struct track *track)
{
	__u64 patience_ns = patience_s(tuple->protocol, track->flags) * SECOND_NS;
	__u64 now = now_ns();
	const struct track *other;

	if (now - track->seen_ns <= patience_ns)
		return 0;
	other = other_way(tuple, track);
	return !other || now - other->seen_ns > patience_ns;
}

/* A set and the affinity to it, as a flow remembers them. */
INLINE __u64 terms(const struct frontend *frontend, __u64 set)
{
	return set ^ frontend->affinity_s;
}

INLINE int is_other_set(const struct frontend *frontend, __u64 set, struct track *track)
{
	if (track->set == terms(frontend, set))
		return 0;
	track->set = terms(frontend, set);
	return 1;
}

/*
 * Whether its endpoint still is one. A TCP connection stays where it was answered. So no flow leads to an endpoint that
 * is gone, and nobody has to look for such flows. With affinity, the client is looked up anew when the endpoints change.
 */
INLINE int is_stale4(const struct tuple *tuple, struct track *track)
{
	struct frontend_key4 at = {
		.address = tuple->destination[0], .port = tuple->destination_port, .protocol = tuple->protocol};
	struct member_key4 member = {.address = track->to.destination[0], .port = track->to.destination_port};
	struct frontend *frontend = map_lookup(&frontends4, &at);

	if (!frontend || track->audience >= AUDIENCES)
		return 1;
	member.set = frontend->choices[track->audience].set;
	return is_other_set(frontend, member.set, track) && (frontend->affinity_s || !map_lookup(&members4, &member));
}

INLINE int is_stale6(const struct tuple *tuple, struct track *track)
{
	struct frontend_key6 at = {.port = tuple->destination_port, .protocol = tuple->protocol};
	struct member_key6 member = {.port = track->to.destination_port};
	struct frontend *frontend;

	__builtin_memcpy(at.address, tuple->destination, 16);
	__builtin_memcpy(member.address, track->to.destination, 16);
	frontend = map_lookup(&frontends6, &at);
	if (!frontend || track->audience >= AUDIENCES)
		return 1;
	member.set = frontend->choices[track->audience].set;
	return is_other_set(frontend, member.set, track) && (frontend->affinity_s || !map_lookup(&members6, &member));
}

INLINE int is_stale(const struct packet *packet, struct track *track)
{
	const struct tuple *tuple = &packet->tuple;

	/* Without a set it is no Service's flow. */
	if (track->flags & TRACK_REPLY || !track->set || track->set == TOLD_SET)
		return 0;
	if (tuple->protocol == IPPROTO_TCP && (!begins(packet) || track->flags & TRACK_ANSWERED))
		return 0;
	return tuple->family == 4 ? is_stale4(tuple, track) : is_stale6(tuple, track);
}

/* A client may use a port again as soon as both sides have closed. */
INLINE int is_used_again(const struct packet *packet, const struct track *track)
{
	__u32 closed = track->flags & TRACK_DIRECT ? TRACK_FIN : TRACK_FIN | TRACK_FIN_BACK;

	return packet->tuple.protocol == IPPROTO_TCP && begins(packet) && (track->flags & closed) == closed;
}

/*
 * The answer to the first packet of another connection with the same addresses and ports, which is led by the rules
 * underneath: its client has given this one up. That packet may have had data.
 */
INLINE int is_of_another(const struct packet *packet, const struct track *track)
{
	return packet->tuple.protocol == IPPROTO_TCP && (packet->flags & (SYN | ACK)) == (SYN | ACK) && track->first &&
	       packet->acknowledged - track->first > 0xffff;
}

/* Both directions learn what a TCP packet says of the connection's end. Forgets it with the last packet. */
INLINE void note_end(const struct packet *packet, struct track *track, struct track *other)
{
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

/* A full table forgets entries one by one. What is left of a flow brings the other direction's back. */
INLINE void restore(const struct tuple *tuple, const struct track *track, struct track *other)
{
	struct tuple key;

	*other = *track;
	other->flags = (track->flags & TRACK_ANSWERED) | (~track->flags & TRACK_REPLY);
	other->first = 0;
	turn(tuple, &other->to);
	turn(&track->to, &key);
	/* Its place may be another flow's by now: then this one is lost, and both sides learn it. */
	if (map_update(&tracked, &key, other, BPF_NOEXIST) && !other_way(tuple, track))
		map_delete(&tracked, tuple);
}

INLINE int is_end(const struct packet *packet, const struct track *track)
{
	return packet->flags & (FIN | RST) || track->flags & (TRACK_FIN | TRACK_FIN_BACK);
}

/* Only the client is heard: how its connection ends is known to the endpoint's node. */
INLINE void note_direct(const struct packet *packet, struct track *track)
{
	__u64 now = now_ns();

	if (now - track->seen_ns > SECOND_NS)
		track->seen_ns = now;
	if (packet->tuple.protocol != IPPROTO_TCP)
		return;
	if (packet->flags & RST)
		map_delete(&tracked, &packet->tuple);
	else if (packet->flags & FIN)
		track->flags |= TRACK_FIN;
	else if (!begins(packet))
		track->flags |= TRACK_ANSWERED;
}

/* Takes in what a packet says of its flow. */
INLINE void note(const struct packet *packet, struct track *track, struct work *work)
{
	int is_first = packet->tuple.protocol == IPPROTO_TCP && begins(packet);
	struct track *other;
	__u64 now = now_ns();
	int is_time = now - track->seen_ns > SECOND_NS, has_answered = is_answered(packet, track, now);

	if (!is_time && !has_answered && !is_first && !is_end(packet, track))
		return;
	other = other_way(&packet->tuple, track);
	if (is_time) {
		track->seen_ns = now;
		if (!other)
			restore(&packet->tuple, track, &work->back);
	}
	if (has_answered) {
		track->flags |= TRACK_ANSWERED;
		if (other)
			other->flags |= TRACK_ANSWERED;
	}
	if (is_first && other)
		other->first = packet->first;
	if (packet->tuple.protocol == IPPROTO_TCP && is_end(packet, track))
		note_end(packet, track, other);
}

/* What becomes of a packet, if that is known. Copied, for an entry that is forgotten may be another's at once. */
INLINE int recall(const struct packet *packet, struct work *work, struct tuple *to)
{
	struct track *track = map_lookup(&tracked, &packet->tuple);

	if (!track)
		return 0;
	if (is_over(&packet->tuple, track) || is_used_again(packet, track) || is_of_another(packet, track) ||
	    is_stale(packet, track)) {
		forget(&packet->tuple, track);
		return 0;
	}
	*to = track->to;
	work->direct = track->flags & TRACK_DIRECT;
	if (work->direct)
		note_direct(packet, track);
	else
		note(packet, track, work);
	return 1;
}
