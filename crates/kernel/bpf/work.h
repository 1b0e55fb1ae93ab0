/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/* What is worked on for one packet, beside the stack: that has 512 bytes. */
#pragma once

#include "route.h"

static __u64 (*const now_ns)(void) = (void *)BPF_FUNC_ktime_get_coarse_ns;

#define SECOND_NS 1000000000ull

/* An ICMP error as it came, and as it goes on: about the packet inside. */
struct error {
	struct tuple outer, inner;
	struct tuple outer_to, inner_to;
};

struct work {
	struct track there, back;
	struct way way;
	struct error error;
	struct affinity_key client;
	struct affinity at;
	struct tuple told; /* the endpoint that another node chose is its destination */
	__u32 direct; /* whether the packet goes to the endpoint's node as it came */
};

/* One for each CPU: a program at a link is not interrupted by another one there. */
OWN_MAP(works, PERCPU_ARRAY, __u32, struct work, 1);

INLINE struct work *work_of_this_cpu(void)
{
	__u32 zero = 0;

	return map_lookup(&works, &zero);
}
