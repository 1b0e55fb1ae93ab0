/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the program at the interfaces is told besides Services, and what it remembers of flows. `bpf/forward.rs` has the
 * same layouts in Rust. One table of flows for both families: an IPv4 address is the first of four parts.
 */
#pragma once

#include "maps.h"

/* Flows remembered at once, two entries each. The least recently used goes first: 160 bytes an entry, always taken. */
#define TRACKED_MAX (1 << 17)
/* Clients whose endpoints are remembered for Services that ask for it. */
#define AFFINITY_MAX (1 << 16)
/* Datagrams in parts, at once. */
#define FRAGMENTS_MAX (1 << 10)
/* Links of this node to pods and to the outside. */
#define DEVICES_MAX (1 << 13)
/* Addresses of nodes. */
#define NODES_MAX (1 << 13)
/* Ranges of pods' addresses. */
#define RANGES_MAX (1 << 8)
/* Sets of endpoints with a table, and its places; also in `plan::proxy::maglev`. */
#define TABLES_MAX (1 << 16)
#define PLACES 1021

struct tuple {
	__be32 source[4];
	__be32 destination[4];
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 family; /* 4 or 6 */
	__u16 zero;
};

/* Flags of a track. */
#define TRACK_REPLY 1      /* of packets from the endpoint */
#define TRACK_ANSWERED 2   /* both sides were heard */
#define TRACK_FIN 4        /* this direction is closed */
#define TRACK_FIN_BACK 8   /* the other one is */
#define TRACK_HEARD 16     /* this one has acknowledged that */
#define TRACK_HEARD_BACK 32
#define TRACK_DIRECT 64    /* the endpoint's node answers: there is no other direction */

/* The set of flows whose endpoint was chosen by another node. */
#define TOLD_SET (~0ull)

/* What becomes of packets that come with a tuple. `to` turned around is the tuple of the answers. */
struct track {
	struct tuple to;
	__u64 begun_ns;
	__u64 seen_ns;
	__u64 set; /* that the endpoint was last seen in */
	__u32 flags;
	__u32 audience;
	__u32 end; /* what this direction acknowledges when it knows that the other one is closed */
	__u32 first; /* and when it answers the first packet of TCP; 0 if that was not seen */
};

MAP(tracked, LRU_HASH, struct tuple, struct track, TRACKED_MAX, 0);

/* Where a link leads to. */
struct device {
	__u32 audience;
};

MAP(devices, HASH, __u32, struct device, DEVICES_MAX, BPF_F_NO_PREALLOC);

struct range_key {
	__u32 length; /* in bits */
	__be32 address[4];
};

/* Addresses of pods of all nodes. */
MAP(pods4, LPM_TRIE, struct range_key, __u32, RANGES_MAX, BPF_F_NO_PREALLOC);
MAP(pods6, LPM_TRIE, struct range_key, __u32, RANGES_MAX, BPF_F_NO_PREALLOC);

struct address {
	__be32 parts[4];
};

/* Of all nodes: who may say which endpoint a client gets. */
MAP(nodes, HASH, struct address, __u32, NODES_MAX, BPF_F_NO_PREALLOC);

/* Which endpoint of a set a client from outside gets. */
struct table {
	__u16 places[PLACES];
	__u16 zero;
};

MAP(tables, HASH, __u64, struct table, TABLES_MAX, BPF_F_NO_PREALLOC);

/* A client of a Service port with affinity. */
struct affinity_key {
	__be32 client[4];
	__u64 identity;
	__u32 local; /* CHOICE_LOCAL: remembered apart */
	__u32 family;
};

/* Where its last connection went. */
struct affinity {
	__be32 address[4];
	__be16 port; /* 0: the rules underneath chose, and remember it */
	__u16 zero;
	__u32 zero_too;
	__u64 seen_ns;
};

MAP(affinity, LRU_HASH, struct affinity_key, struct affinity, AFFINITY_MAX, 0);

/* Seconds after which a silent flow is forgotten. */
struct forwarding {
	__be32 address4; /* this node's own, for masquerade; 0 for none */
	__be32 address6[4];
	__u16 port_min; /* ports for masquerade, in the machine's order */
	__u16 port_max;
	__u32 opening_s; /* TCP, not answered yet */
	__u32 open_s;
	__u32 closing_s;
	__u32 asked_s; /* UDP, else */
	__u32 answered_s; /* UDP, back and forth for a while */
	__u32 leaving; /* not 0: TCP flows that are carried go on, and nothing else */
};

MAP(forwarding, ARRAY, __u32, struct forwarding, 1, 0);

/* The ports of a datagram in parts, from its first part. */
struct fragment_key {
	__be32 source[4];
	__be32 destination[4];
	__be32 id;
	__u8 protocol;
	__u8 family;
	__u16 zero;
};

struct fragment {
	__be16 source_port;
	__be16 destination_port;
};

MAP(fragments, LRU_HASH, struct fragment_key, struct fragment, FRAGMENTS_MAX, 0);

/* Beside those of `maps.h`. */
enum {
	FLOWS4 = 16, /* flows led to an endpoint at an interface */
	FLOWS6,
	PACKETS4, /* of such flows, in both directions */
	PACKETS6,
	PORTLESS, /* no port was free for masquerade */
	DIRECT4, /* flows between pods */
	DIRECT6,
};
