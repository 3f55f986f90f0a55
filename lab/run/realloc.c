// SPDX-License-Identifier: GPL-2.0
/*
 * A buffer that realloc() grows by half from 256 KB to 1 GB: from the mmap
 * threshold on, every step of glibc's realloc is one mremap(MREMAP_MAYMOVE).
 * Every page is stamped once and all stamps are checked after every step.
 *
 * With "advised" for an argument, the upper half of it is left out of core dumps before
 * each step, as programs do with what they can compute anew. So it is two mappings.
 * With a number, it grows to that many MB only.
 */
#define _DEFAULT_SOURCE
#include <stdlib.h>
#include <sys/mman.h>

#include "stamp.h"

#define FIRST	(256UL << 10)
#define LAST	(1UL << 30)

static int advise(char *buf, size_t size)
{
	char *half = buf + size / 2;

	half -= (uintptr_t)half % STAMP_PAGE;
	return madvise(half, (size_t)(buf + size - half), MADV_DONTDUMP);
}

int main(int argc, char **argv)
{
	const int advised = argc > 1 && !strcmp(argv[1], "advised");
	const size_t last = argc > 1 && !advised ? strtoul(argv[1], NULL, 0) << 20 : LAST;
	size_t size = 0, steps = 0, moved = 0;
	char *buf = NULL;

	for (size_t want = FIRST; size < last; want = size + size / 2) {
		uintptr_t old = (uintptr_t)buf;
		char *grown;

		want = (want > last ? last : want) & ~(STAMP_PAGE - 1);
		grown = realloc(buf, want);
		if (!grown) {
			perror("realloc");
			return 1;
		}
		buf = grown;
		moved += old && old != (uintptr_t)buf;
		if (stamp_wrong(buf, 0, size, 1)) {
			printf("contents lost growing %zu to %zu bytes\n", size, want);
			return 1;
		}
		stamp(buf, size, want, 1);
		size = want;
		steps++;
		if (advised && advise(buf, size)) {
			perror("madvise");
			return 1;
		}
	}
	if (stamp_wrong(buf, 0, size, 1))
		return 1;
	printf("%zu steps to %zu bytes, the buffer moved %zu times\n",
	       steps, size, moved);
	free(buf);
	return 0;
}
