/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the programs use of the kernel: types, map definitions, and helpers by their numbers (linux/bpf.h has them).
 * Of our own, so that whoever compiles needs clang and the kernel's headers only.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/types.h>

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define LICENSE(words) char _license[] SECTION("license") = words

/* A map. `pinning` 1: shared by its name with whoever loads from the same folder. */
struct map {
	__u32 type;
	__u32 key_size;
	__u32 value_size;
	__u32 max_entries;
	__u32 map_flags;
	__u32 id;
	__u32 pinning;
};

#define MAP(name, kind, key, value, most, flags) MAP_OF(name, kind, key, value, most, flags, 1)

/* One of whoever loads it alone. */
#define OWN_MAP(name, kind, key, value, most) MAP_OF(name, kind, key, value, most, 0, 0)

#define MAP_OF(name, kind, key, value, most, flags, pin)                                                              \
	struct map name SECTION("maps") = {                                                                            \
		.type = BPF_MAP_TYPE_##kind,                                                                           \
		.key_size = sizeof(key),                                                                               \
		.value_size = sizeof(value),                                                                           \
		.max_entries = most,                                                                                   \
		.map_flags = flags,                                                                                    \
		.pinning = pin,                                                                                        \
	}

static void *(*const map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*const map_update)(void *map, const void *key, const void *value, __u64 flags) =
	(void *)BPF_FUNC_map_update_elem;
static long (*const map_delete)(void *map, const void *key) = (void *)BPF_FUNC_map_delete_elem;
static __u32 (*const random_u32)(void) = (void *)BPF_FUNC_get_prandom_u32;
static __u64 (*const socket_cookie)(void *context) = (void *)BPF_FUNC_get_socket_cookie;
static __u64 (*const netns_cookie)(void *context) = (void *)BPF_FUNC_get_netns_cookie;

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define htons(x) __builtin_bswap16(x)
#define htonl(x) __builtin_bswap32(x)
#else
#define htons(x) (x)
#define htonl(x) (x)
#endif
