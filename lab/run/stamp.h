/* SPDX-License-Identifier: GPL-2.0 */
/* Page stamps: every page gets words that name its buffer and its place in it. */
#ifndef STAMP_H
#define STAMP_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define STAMP_PAGE 4096UL

/* First, middle and last word of a page, so that half-moved pages show too. */
static const size_t stamp_at[] = { 0, 2048, 4088 };

static inline uint64_t stamp_word(uint64_t seed, size_t page, size_t at)
{
	uint64_t x = (seed << 48) ^ ((uint64_t)page << 12) ^ at;

	x *= 0x9e3779b97f4a7c15ULL;
	return x ^ (x >> 29);
}

/* Stamp the whole pages of buf in [from, to), both multiples of a page. */
static inline void stamp(char *buf, size_t from, size_t to, uint64_t seed)
{
	for (size_t pos = from; pos < to; pos += STAMP_PAGE) {
		for (size_t i = 0; i < 3; i++) {
			uint64_t word = stamp_word(seed, pos / STAMP_PAGE, stamp_at[i]);

			memcpy(buf + pos + stamp_at[i], &word, sizeof(word));
		}
	}
}

/* Count the stamps in [from, to) that are wrong; the first one is printed. */
static inline size_t stamp_wrong(const char *buf, size_t from, size_t to, uint64_t seed)
{
	size_t wrong = 0;

	for (size_t pos = from; pos < to; pos += STAMP_PAGE) {
		for (size_t i = 0; i < 3; i++) {
			uint64_t want = stamp_word(seed, pos / STAMP_PAGE, stamp_at[i]);
			uint64_t have;

			memcpy(&have, buf + pos + stamp_at[i], sizeof(have));
			if (have == want)
				continue;
			if (!wrong++)
				printf("buffer %llu, byte %#zx at %p: %#llx, not %#llx\n",
				       (unsigned long long)seed, pos + stamp_at[i],
				       (const void *)(buf + pos + stamp_at[i]),
				       (unsigned long long)have,
				       (unsigned long long)want);
		}
	}
	return wrong;
}

#endif
