/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Services at the socket: a connect to a frontend becomes a connect to one of its endpoints, so that no packet is ever
 * translated. What is not decided here completely is left as it is, for the rules underneath.
 */
#include "maps.h"

#define PASS 1
#define LOOPBACK_MASK htonl(0xff000000)
#define LOOPBACK htonl(0x7f000000)

INLINE struct place *place_of(struct bpf_sock_addr *ctx)
{
	__u64 cookie = netns_cookie(ctx);

	return map_lookup(&namespaces, &cookie);
}

/* What of a frontend is for this place. Masquerade is nothing new to the node, and cannot be done for a pod here. */
INLINE struct choice *choice_for(struct frontend *frontend, const struct place *place)
{
	struct choice *choice = place->audience == NODE ? &frontend->choices[NODE] : &frontend->choices[PODS];

	if (frontend->affinity_s || !choice->count)
		return 0;
	if (place->audience != NODE && choice->flags & CHOICE_MASQUERADE)
		return 0;
	return choice;
}

INLINE struct endpoint_key draw(const struct choice *choice)
{
	struct endpoint_key key = { .set = choice->set, .index = random_u32() % choice->count };

	return key;
}

/* A pod that is an endpoint itself might draw itself, and must see the node's address then. */
INLINE int is_own4(__u64 set, const struct place *place)
{
	struct member_key4 key = { .set = set, .address = place->address4 };

	return place->audience != NODE && map_lookup(&members4, &key);
}

INLINE int is_own6(__u64 set, const struct place *place)
{
	struct member_key6 key = { .set = set };

	__builtin_memcpy(key.address, place->address6, sizeof(key.address));
	return place->audience != NODE && map_lookup(&members6, &key);
}

INLINE int same4(const struct endpoint4 *a, const struct endpoint4 *b)
{
	return a->address == b->address && a->port == b->port;
}

INLINE int same6(const struct endpoint6 *a, const struct endpoint6 *b)
{
	return a->address[0] == b->address[0] && a->address[1] == b->address[1] && a->address[2] == b->address[2] &&
	       a->address[3] == b->address[3] && a->port == b->port;
}

/* Notes which frontend the socket took the endpoint for, unless it was for another one. */
INLINE int note4(__u64 cookie, const struct endpoint4 *endpoint, const struct endpoint4 *frontend)
{
	struct socket_key4 key = { .cookie = cookie, .address = endpoint->address, .port = endpoint->port };
	struct endpoint4 *known = map_lookup(&origins4, &key);

	if (known)
		return same4(known, frontend);
	return !map_update(&origins4, &key, frontend, BPF_ANY);
}

INLINE int note6(__u64 cookie, const struct endpoint6 *endpoint, const struct endpoint6 *frontend)
{
	struct socket_key6 key = { .cookie = cookie, .port = endpoint->port };
	struct endpoint6 *known;

	__builtin_memcpy(key.address, endpoint->address, sizeof(key.address));
	known = map_lookup(&origins6, &key);
	if (known)
		return same6(known, frontend);
	return !map_update(&origins6, &key, frontend, BPF_ANY);
}

/* The endpoint that a UDP socket has at a frontend, while that is in use; else a new one. */
INLINE int flow_of4(__u64 cookie, const struct endpoint4 *frontend, const struct choice *choice, struct endpoint4 *to)
{
	struct socket_key4 key = { .cookie = cookie, .address = frontend->address, .port = frontend->port };
	struct flow4 *known = map_lookup(&flows4, &key);
	struct flow4 flow = { .set = choice->set };
	struct endpoint_key drawn;
	struct endpoint4 *endpoint;

	if (known) {
		struct member_key4 member = { .set = choice->set };

		*to = known->endpoint;
		member.address = to->address;
		member.port = to->port;
		if (known->set == choice->set || map_lookup(&members4, &member))
			return 1;
	}
	drawn = draw(choice);
	endpoint = map_lookup(&endpoints4, &drawn);
	if (!endpoint)
		return 0;
	*to = flow.endpoint = *endpoint;
	return !map_update(&flows4, &key, &flow, BPF_ANY);
}

INLINE int flow_of6(__u64 cookie, const struct endpoint6 *frontend, const struct choice *choice, struct endpoint6 *to)
{
	struct socket_key6 key = { .cookie = cookie, .port = frontend->port };
	struct flow6 flow = { .set = choice->set };
	struct endpoint_key drawn;
	struct endpoint6 *endpoint;
	struct flow6 *known;

	__builtin_memcpy(key.address, frontend->address, sizeof(key.address));
	known = map_lookup(&flows6, &key);
	if (known) {
		struct member_key6 member = { .set = choice->set };

		*to = known->endpoint;
		__builtin_memcpy(member.address, to->address, sizeof(member.address));
		member.port = to->port;
		if (known->set == choice->set || map_lookup(&members6, &member))
			return 1;
	}
	drawn = draw(choice);
	endpoint = map_lookup(&endpoints6, &drawn);
	if (!endpoint)
		return 0;
	*to = flow.endpoint = *endpoint;
	return !map_update(&flows6, &key, &flow, BPF_ANY);
}

/* Whether the socket is to go to `to` in place of `at`. */
INLINE int carry4(struct bpf_sock_addr *ctx, __u8 protocol, const struct endpoint4 *at, struct endpoint4 *to)
{
	struct frontend_key4 key = { .address = at->address, .port = at->port, .protocol = protocol };
	struct frontend *frontend = map_lookup(&frontends4, &key);
	struct place *place;
	struct choice *choice;
	__u64 cookie;

	if (!frontend)
		return 0;
	place = place_of(ctx);
	choice = place ? choice_for(frontend, place) : 0;
	if (!choice || is_own4(choice->set, place))
		goto leave;
	cookie = socket_cookie(ctx);
	if (protocol == IPPROTO_UDP) {
		if (!flow_of4(cookie, at, choice, to))
			goto leave;
	} else {
		struct endpoint_key drawn = draw(choice);
		struct endpoint4 *endpoint = map_lookup(&endpoints4, &drawn);

		if (!endpoint)
			goto leave;
		*to = *endpoint;
	}
	if (!note4(cookie, to, at))
		goto leave;
	count(protocol == IPPROTO_UDP ? SENT4 : CONNECTED4);
	return 1;
leave:
	count(LEFT4);
	return 0;
}

INLINE int carry6(struct bpf_sock_addr *ctx, __u8 protocol, const struct endpoint6 *at, struct endpoint6 *to)
{
	struct frontend_key6 key = { .port = at->port, .protocol = protocol };
	struct frontend *frontend;
	struct place *place;
	struct choice *choice;
	__u64 cookie;

	__builtin_memcpy(key.address, at->address, sizeof(key.address));
	frontend = map_lookup(&frontends6, &key);
	if (!frontend)
		return 0;
	place = place_of(ctx);
	choice = place ? choice_for(frontend, place) : 0;
	if (!choice || is_own6(choice->set, place))
		goto leave;
	cookie = socket_cookie(ctx);
	if (protocol == IPPROTO_UDP) {
		if (!flow_of6(cookie, at, choice, to))
			goto leave;
	} else {
		struct endpoint_key drawn = draw(choice);
		struct endpoint6 *endpoint = map_lookup(&endpoints6, &drawn);

		if (!endpoint)
			goto leave;
		*to = *endpoint;
	}
	if (!note6(cookie, to, at))
		goto leave;
	count(protocol == IPPROTO_UDP ? SENT6 : CONNECTED6);
	return 1;
leave:
	count(LEFT6);
	return 0;
}

/* IPv4 in an IPv6 socket. */
INLINE int is_mapped(struct bpf_sock_addr *ctx)
{
	return !ctx->user_ip6[0] && !ctx->user_ip6[1] && ctx->user_ip6[2] == htonl(0xffff);
}

INLINE int is_loopback4(__be32 address)
{
	return (address & LOOPBACK_MASK) == LOOPBACK;
}

INLINE struct endpoint6 address6(struct bpf_sock_addr *ctx)
{
	struct endpoint6 at = { .port = ctx->user_port };

	at.address[0] = ctx->user_ip6[0];
	at.address[1] = ctx->user_ip6[1];
	at.address[2] = ctx->user_ip6[2];
	at.address[3] = ctx->user_ip6[3];
	return at;
}

INLINE void lead6(struct bpf_sock_addr *ctx, const struct endpoint6 *to)
{
	ctx->user_ip6[0] = to->address[0];
	ctx->user_ip6[1] = to->address[1];
	ctx->user_ip6[2] = to->address[2];
	ctx->user_ip6[3] = to->address[3];
	ctx->user_port = to->port;
}

/* A UDP socket that is connected would stay at its endpoint for ever: it is left to the rules underneath. */
SECTION("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	struct endpoint4 at = { .address = ctx->user_ip4, .port = ctx->user_port }, to;

	if (ctx->protocol != IPPROTO_TCP || is_loopback4(ctx->sk->src_ip4))
		return PASS;
	if (carry4(ctx, IPPROTO_TCP, &at, &to)) {
		ctx->user_ip4 = to.address;
		ctx->user_port = to.port;
	}
	return PASS;
}

SECTION("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct endpoint6 at6, to6;

	if (ctx->protocol != IPPROTO_TCP)
		return PASS;
	if (is_mapped(ctx)) {
		struct endpoint4 at = { .address = ctx->user_ip6[3], .port = ctx->user_port }, to;

		if (!is_loopback4(ctx->sk->src_ip6[3]) && carry4(ctx, IPPROTO_TCP, &at, &to)) {
			ctx->user_ip6[3] = to.address;
			ctx->user_port = to.port;
		}
		return PASS;
	}
	at6 = address6(ctx);
	if (carry6(ctx, IPPROTO_TCP, &at6, &to6))
		lead6(ctx, &to6);
	return PASS;
}

/* A datagram of a socket that is not connected. IPv4 in an IPv6 socket comes here, too. */
SECTION("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	struct endpoint4 at = { .address = ctx->user_ip4, .port = ctx->user_port }, to;

	if (ctx->protocol != IPPROTO_UDP || is_loopback4(ctx->msg_src_ip4))
		return PASS;
	if (carry4(ctx, IPPROTO_UDP, &at, &to)) {
		ctx->user_ip4 = to.address;
		ctx->user_port = to.port;
	}
	return PASS;
}

SECTION("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	struct endpoint6 at, to;

	if (ctx->protocol != IPPROTO_UDP || is_mapped(ctx))
		return PASS;
	at = address6(ctx);
	if (carry6(ctx, IPPROTO_UDP, &at, &to))
		lead6(ctx, &to);
	return PASS;
}

/* Shows the frontend where the endpoint is that was taken for it. */
INLINE void show4(struct bpf_sock_addr *ctx)
{
	struct socket_key4 key = { .address = ctx->user_ip4, .port = ctx->user_port };
	struct endpoint4 *frontend;

	key.cookie = socket_cookie(ctx);
	frontend = map_lookup(&origins4, &key);
	if (frontend) {
		ctx->user_ip4 = frontend->address;
		ctx->user_port = frontend->port;
	}
}

INLINE void show6(struct bpf_sock_addr *ctx)
{
	struct socket_key6 key = { .port = ctx->user_port };
	struct endpoint6 *frontend;

	key.address[0] = ctx->user_ip6[0];
	key.address[1] = ctx->user_ip6[1];
	key.address[2] = ctx->user_ip6[2];
	key.address[3] = ctx->user_ip6[3];
	key.cookie = socket_cookie(ctx);
	frontend = map_lookup(&origins6, &key);
	if (frontend)
		lead6(ctx, frontend);
}

INLINE void show_mapped(struct bpf_sock_addr *ctx)
{
	struct socket_key4 key = { .address = ctx->user_ip6[3], .port = ctx->user_port };
	struct endpoint4 *frontend;

	key.cookie = socket_cookie(ctx);
	frontend = map_lookup(&origins4, &key);
	if (frontend) {
		ctx->user_ip6[3] = frontend->address;
		ctx->user_port = frontend->port;
	}
}

SECTION("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	show4(ctx);
	return PASS;
}

SECTION("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	if (is_mapped(ctx))
		show_mapped(ctx);
	else
		show6(ctx);
	return PASS;
}

SECTION("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	show4(ctx);
	return PASS;
}

SECTION("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	if (is_mapped(ctx))
		show_mapped(ctx);
	else
		show6(ctx);
	return PASS;
}

LICENSE("Apache-2.0");
