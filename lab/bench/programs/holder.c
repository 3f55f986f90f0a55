// SPDX-License-Identifier: GPL-2.0
/*
 * The process that CRIU restores: 64 mappings of 16 MB, all of which is in use. It stops
 * itself when they are filled, where it is dumped; and once more when all was read.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "../../run/stamp.h"

#define MAPPINGS	64
#define SIZE		(16UL << 20)
#define GAP		(1UL << 20)

int main(void)
{
	size_t wrong = 0;
	char *area = mmap(NULL, MAPPINGS * (SIZE + GAP), PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (area == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	for (int i = 0; i < MAPPINGS; i++) {
		char *place = area + i * (SIZE + GAP);

		if (mprotect(place, SIZE, PROT_READ | PROT_WRITE)) {
			perror("mprotect");
			return 1;
		}
		stamp(place, 0, SIZE, i);
	}
	raise(SIGSTOP);
	for (int i = 0; i < MAPPINGS; i++)
		wrong += stamp_wrong(area + i * (SIZE + GAP), 0, SIZE, i);
	if (wrong)
		return 1;
	raise(SIGSTOP);
	return 0;
}
