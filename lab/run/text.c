// SPDX-License-Identifier: GPL-2.0
/*
 * Moves a page of its own text and runs in there for a while, as programs do that
 * put their text elsewhere: spin_in_moved_text() is what a profiler should name.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE	4096UL
#define SECONDS	3

/* It calls nothing, so that it runs anywhere. Nothing else is on its page. */
__attribute__((section("moving"), aligned(4096), noinline, noclone))
unsigned long spin_in_moved_text(unsigned long rounds)
{
	unsigned long sum = 0;

	for (unsigned long i = 0; i < rounds; i++)
		__asm__ volatile("add %1, %0" : "+r" (sum) : "r" (i));
	return sum;
}

/* It is not used: the rest of the page belongs to it. */
__attribute__((section("moving"), aligned(4096), used))
static void behind_moved_text(void)
{
}

int main(void)
{
	unsigned long (*spin)(unsigned long) = spin_in_moved_text;
	const time_t end = time(NULL) + SECONDS;
	void *moved, *place;

	place = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	moved = mremap((void *)spin, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place);
	if (moved == MAP_FAILED) {
		perror("mremap");
		return 1;
	}
	spin = (unsigned long (*)(unsigned long))moved;
	while (time(NULL) < end)
		spin(1UL << 20);
	printf("text moved from %p to %p\n", (void *)spin_in_moved_text, moved);
	return 0;
}
