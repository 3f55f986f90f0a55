// SPDX-License-Identifier: GPL-2.0
/*
 * An array that grows by half when it is full, as a program collects what it reads: each
 * growth is glibc's realloc(). It stops itself twice to be looked at: when it has grown,
 * and when all of it was read again.
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define ITEMS (48UL << 20)	/* 384 MB */

int main(void)
{
	uint64_t *items = NULL, sum = 0;
	size_t room = 0;

	for (size_t i = 0; i < ITEMS; i++) {
		if (i == room) {
			room = room ? room + room / 2 : 1024;
			items = realloc(items, room * sizeof(*items));
			if (!items) {
				perror("realloc");
				return 1;
			}
		}
		items[i] = i * i;
	}
	raise(SIGSTOP);
	for (size_t i = 0; i < ITEMS; i++)
		sum += items[i] - i * (i - 1);
	raise(SIGSTOP);
	if (sum != ITEMS * (ITEMS - 1) / 2) {
		printf("wrong contents\n");
		return 1;
	}
	return 0;
}
