// SPDX-License-Identifier: GPL-2.0
/*
 * The process that CRIU dumps. It stamps mappings and moves them about with
 * mremap(), says "moved 1" and waits for SIGUSR1; then it checks all contents,
 * moves everything again, says "moved 2", and so on. It writes to none of the
 * mappings again. Linked statically, so that CRIU has one executable to find.
 *
 * usage: moved moves|lazy|swaps
 *   moves: each mapping goes to a place of its own
 *   lazy: the same, but no page is touched between the signal and the move
 *   swaps: two mappings each change places
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "stamp.h"

#define KB	(1UL << 10)
#define MB	(1UL << 20)
#define GB	(1UL << 30)

#define STAYS_SEED	1000	/* added to the seed of what moves */

struct region {
	const char *name;
	size_t stays;		/* bytes of the mapping below what moves */
	size_t size;		/* of what moves, ... */
	size_t moved_size;	/* ... and from the first move on, if not 0 */
	size_t align;		/* of all places, ... */
	size_t from, to;	/* ... to which these are added */
	int map_flags;
	int move_flags;
	int huge;
	size_t stamped;		/* bytes with contents, 0: all that survive */
	char *home, *at;	/* where what moves was at first, and is */
	char *left;		/* what DONTUNMAP has left behind */
};

static struct region moving[] = {
	{ .name = "one page", .size = 4 * KB,
	  .align = 2 * MB, .from = 4 * KB, .to = 64 * KB },
	{ .name = "off by one page", .size = 16 * MB,
	  .align = 2 * MB, .to = 4 * KB },
	{ .name = "congruent, ragged ends", .size = 9 * MB + 12 * KB,
	  .align = 2 * MB, .from = 20 * KB, .to = 20 * KB },
	{ .name = "whole tables", .size = 32 * MB, .align = 2 * MB },
	{ .name = "whole directory", .size = GB,
	  .align = GB, .stamped = 8 * MB },
	{ .name = "huge pages, aligned", .size = 16 * MB,
	  .align = 2 * MB, .huge = 1 },
	{ .name = "huge pages, split", .size = 16 * MB,
	  .align = 2 * MB, .to = 8 * KB, .huge = 1 },
	{ .name = "grown", .size = 4 * MB, .moved_size = 12 * MB,
	  .align = 2 * MB, .to = 4 * KB },
	{ .name = "shrunk", .size = 12 * MB, .moved_size = 4 * MB,
	  .align = 2 * MB, .to = 4 * KB },
	{ .name = "shared", .size = 8 * MB,
	  .align = 2 * MB, .to = 12 * KB, .map_flags = MAP_SHARED },
	{ .name = "old mapping kept", .size = 8 * MB,
	  .align = 2 * MB, .move_flags = MREMAP_DONTUNMAP },
	{ .name = "away and back to its neighbour", .stays = 8 * MB,
	  .size = 8 * MB, .align = 2 * MB },
};

/* Each changes places with the next one. Every other time A is back home. */
static struct region swapping[] = {
	{ .name = "tables A, with a neighbour", .stays = 8 * MB,
	  .size = 8 * MB, .align = 2 * MB },
	{ .name = "tables B", .size = 8 * MB, .align = 2 * MB },
	{ .name = "directory A", .size = GB, .align = GB, .stamped = 8 * MB },
	{ .name = "directory B", .size = GB, .align = GB, .stamped = 8 * MB },
	{ .name = "pages A", .size = 4 * MB, .align = 2 * MB },
	{ .name = "pages B", .size = 4 * MB, .align = 2 * MB, .from = 4 * KB },
};

static volatile sig_atomic_t signalled;

static void on_signal(int sig)
{
	signalled = sig;
}

static void die(const struct region *region, const char *what)
{
	printf("%s: ", region->name);
	fflush(stdout);
	perror(what);
	exit(1);
}

/* Keep others out of an address range, at any place if that is NULL. */
static char *hold(const struct region *region, char *place, size_t size)
{
	char *held = mmap(place, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS |
			  MAP_NORESERVE | (place ? MAP_FIXED : 0), -1, 0);

	if (held == MAP_FAILED)
		die(region, "reserve");
	return held;
}

/* Address space that nothing else uses, offset from the region's alignment. */
static char *reserve(const struct region *region, size_t size, size_t offset)
{
	size_t align = region->align;
	char *hole = hold(region, NULL, size + offset + 2 * align);

	return (char *)(((uintptr_t)hole + align) & ~(align - 1)) + offset;
}

static void create(struct region *region, uint64_t seed)
{
	int kind = region->map_flags ? region->map_flags : MAP_PRIVATE;
	size_t size = region->stays + region->size;
	char *place = reserve(region, size, region->from);

	if (mmap(place, size, PROT_READ | PROT_WRITE, kind | MAP_ANONYMOUS |
		 MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED)
		die(region, "mmap");
	if (madvise(place, size, region->huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE))
		die(region, "madvise");
	if (!region->moved_size)
		region->moved_size = region->size;
	if (!region->stamped)
		region->stamped = region->size < region->moved_size ?
				  region->size : region->moved_size;
	region->home = place + region->stays;
	region->at = region->home;
	stamp(place, 0, region->stays, STAYS_SEED + seed);
	stamp(region->at, 0, region->stamped, seed);
}

static int is_wrong(const struct region *region, uint64_t seed)
{
	size_t wrong = stamp_wrong(region->at, 0, region->stamped, seed);

	wrong += stamp_wrong(region->home - region->stays, 0, region->stays,
			     STAYS_SEED + seed);
	for (size_t pos = 0; region->left && pos < region->size; pos += STAMP_PAGE)
		wrong += !!*(uint64_t *)(region->left + pos);
	if (wrong)
		printf("%s: wrong contents\n", region->name);
	return !!wrong;
}

static void check(const struct region *regions, size_t count, const char *when)
{
	int wrong = 0;

	for (size_t i = 0; i < count; i++)
		wrong += is_wrong(&regions[i], i + 1);
	if (!wrong)
		return;
	printf("wrong contents %s\n", when);
	exit(1);
}

static void move_to(struct region *region, char *place)
{
	char *old = region->at;

	region->at = mremap(old, region->size, region->moved_size,
			    MREMAP_MAYMOVE | MREMAP_FIXED | region->move_flags,
			    place);
	if (region->at == MAP_FAILED)
		die(region, "mremap");
	region->size = region->moved_size;
	if (region->move_flags & MREMAP_DONTUNMAP)
		region->left = old;
}

/* Back home if there is a neighbour to be merged with, else to a new place. */
static void move(struct region *region)
{
	if (region->stays && region->at != region->home) {
		move_to(region, region->home);
		return;
	}
	move_to(region, reserve(region, region->moved_size, region->to));
	if (region->stays)
		hold(region, region->home, region->size);
}

static void swap(struct region *a, struct region *b)
{
	char *place_a = a->at, *place_b = b->at;

	move_to(a, reserve(a, a->size, 0));
	move_to(b, place_a);
	move_to(a, place_b);
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_signal };
	int swaps = argc == 2 && !strcmp(argv[1], "swaps");
	int lazy = argc == 2 && !strcmp(argv[1], "lazy");
	struct region *regions = swaps ? swapping : moving;
	size_t count = (swaps ? sizeof(swapping) : sizeof(moving)) / sizeof(*regions);
	sigset_t blocked, before;

	setlinebuf(stdout);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	sigprocmask(SIG_BLOCK, &blocked, &before);
	sigaction(SIGUSR1, &action, NULL);

	for (size_t i = 0; i < count; i++)
		create(&regions[i], i + 1);
	for (int round = 1;; round++) {
		for (size_t i = 0; i < count; i += 1 + swaps) {
			if (swaps)
				swap(&regions[i], &regions[i + 1]);
			else
				move(&regions[i]);
		}
		check(regions, count, "after mremap");
		printf("moved %d\n", round);
		while (!signalled)
			sigsuspend(&before);
		signalled = 0;
		if (!lazy)
			check(regions, count, "after the dump");
	}
}
