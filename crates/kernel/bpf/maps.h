/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the agent tells the programs, and what they remember. `bpf/tables.rs` has the same layouts in Rust.
 * Addresses and ports are in network order. Every byte of a key counts: `zero` is zero.
 *
 * A frontend names a set of endpoints by a hash of what is in it. A change of endpoints is another set: it is written
 * whole, then the frontend is led to it, then the set before is taken away. So whoever reads a frontend finds all of it.
 */
#pragma once

#include "helpers.h"

/* Changes with every change of a layout: maps are pinned below a folder with this number. Also in `bpf.rs`. */
#define LAYOUT 3

/* Entries take memory when they are there, the number of buckets always: 16 bytes each. */
#define FRONTENDS_MAX (1 << 17)
#define ENDPOINTS_MAX (1 << 19)
#define NAMESPACES_MAX (1 << 13)
/* Sockets remembered at once, of each kind. The least recently used goes first. */
#define SOCKETS_MAX (1 << 16)

/* Who asks. */
enum audience {
	PODS = 0,    /* pods of this node */
	NODE = 1,    /* this node itself, and pods in its network */
	OUTSIDE = 2, /* everybody else */
	AUDIENCES = 3,
};

/* Flags of a choice. */
#define CHOICE_MASQUERADE 1 /* the node puts its address in place of the client's */
#define CHOICE_LOCAL 2      /* endpoints of this node only, by policy: affinity is remembered apart */
#define CHOICE_DIRECT 4     /* nobody's, where the endpoint's node answers the client itself */

/* The endpoints for one audience. None: the programs leave these packets to the rules underneath. */
struct choice {
	__u64 set;
	__u32 count;
	__u32 flags;
};

/* Where a Service answers. */
struct frontend_key4 {
	__be32 address;
	__be16 port;
	__u8 protocol;
	__u8 zero;
};

struct frontend_key6 {
	__be32 address[4];
	__be16 port;
	__u8 protocol;
	__u8 zero;
};

struct frontend {
	struct choice choices[AUDIENCES];
	__u64 identity;   /* of the Service port, for affinity: equal for all its frontends */
	__u32 affinity_s; /* seconds; 0 for none */
	__u32 zero;
};

MAP(frontends4, HASH, struct frontend_key4, struct frontend, FRONTENDS_MAX, BPF_F_NO_PREALLOC);
MAP(frontends6, HASH, struct frontend_key6, struct frontend, FRONTENDS_MAX, BPF_F_NO_PREALLOC);

/* Endpoints, by their number in the set: from 0 to its count. */
struct endpoint_key {
	__u64 set;
	__u32 index;
	__u32 zero;
};

struct endpoint4 {
	__be32 address;
	__be16 port;
	__u16 zero;
};

struct endpoint6 {
	__be32 address[4];
	__be16 port;
	__u16 zero;
};

MAP(endpoints4, HASH, struct endpoint_key, struct endpoint4, ENDPOINTS_MAX, BPF_F_NO_PREALLOC);
MAP(endpoints6, HASH, struct endpoint_key, struct endpoint6, ENDPOINTS_MAX, BPF_F_NO_PREALLOC);

/*
 * Who is in a set. With its port: every endpoint of sets to which something is remembered (UDP, affinity). With port 0:
 * addresses of this node, which may be clients of themselves; for every set.
 */
struct member_key4 {
	__u64 set;
	__be32 address;
	__be16 port;
	__u16 zero;
};

struct member_key6 {
	__u64 set;
	__be32 address[4];
	__be16 port;
	__u16 zero;
	__u32 zero_too;
};

MAP(members4, HASH, struct member_key4, __u32, ENDPOINTS_MAX, BPF_F_NO_PREALLOC);
MAP(members6, HASH, struct member_key6, __u32, ENDPOINTS_MAX, BPF_F_NO_PREALLOC);

/* Network namespaces by their cookies. Those that are not here are left to the rules underneath. */
struct place {
	__u32 audience; /* PODS or NODE */
	__be32 address4; /* the pod's own; 0 for none */
	__be32 address6[4];
};

MAP(namespaces, HASH, __u64, struct place, NAMESPACES_MAX, BPF_F_NO_PREALLOC);

/* A socket and an address. */
struct socket_key4 {
	__u64 cookie;
	__be32 address;
	__be16 port;
	__u16 zero;
};

struct socket_key6 {
	__u64 cookie;
	__be32 address[4];
	__be16 port;
	__u16 zero;
	__u32 zero_too;
};

/* The endpoint that a UDP socket has at a frontend. */
struct flow4 {
	__u64 set;
	struct endpoint4 endpoint;
};

struct flow6 {
	__u64 set;
	struct endpoint6 endpoint;
	__u32 zero;
};

MAP(flows4, LRU_HASH, struct socket_key4, struct flow4, SOCKETS_MAX, 0);
MAP(flows6, LRU_HASH, struct socket_key6, struct flow6, SOCKETS_MAX, 0);

/* The frontend that a socket took an endpoint for. */
MAP(origins4, LRU_HASH, struct socket_key4, struct endpoint4, SOCKETS_MAX, 0);
MAP(origins6, LRU_HASH, struct socket_key6, struct endpoint6, SOCKETS_MAX, 0);

/* What was done, counted on each CPU. New ones at the end. */
enum counter {
	CONNECTED4 = 0, /* TCP connects led to an endpoint */
	CONNECTED6,
	SENT4, /* datagrams led to an endpoint at their socket */
	SENT6,
	LEFT4, /* to a frontend, but left to the rules underneath */
	LEFT6,
	COUNTERS = 32,
};

MAP(counters, PERCPU_ARRAY, __u32, __u64, COUNTERS, 0);

INLINE void count(__u32 counter)
{
	__u64 *value = map_lookup(&counters, &counter);

	if (value)
		*value += 1;
}
