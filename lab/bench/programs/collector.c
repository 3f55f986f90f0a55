// SPDX-License-Identifier: GPL-2.0
/*
 * A garbage collector that compacts as Android's does. When the heap is full, what is live
 * is marked. Then one mremap(MREMAP_DONTUNMAP) takes all pages away to a shadow, and the
 * heap, which userfaultfd watches, is empty. A page of it is put together from the shadow
 * when the program touches it, at its SIGBUS; what nobody has touched until the end of the
 * next step, after that.
 *
 * The program makes binary trees, of which the last ones are kept. It stops itself twice to
 * be looked at: when all are made, and when all that are kept were read again.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE		4096UL
#define HEAP		(128UL << 20)
#define PAGES		(HEAP / PAGE)
#define OBJECTS		(HEAP / sizeof(struct object))
#define PER_PAGE	(PAGE / sizeof(struct object))
#define WORDS		(OBJECTS / 64)		/* of one bit for each object */

#define DEPTH		13			/* a tree of 8,191 objects, 512 KB */
#define TREES		64			/* are kept */
#define STEPS		2000

struct object {
	struct object *left, *right;
	uint64_t value;
	char rest[40];
};

static struct object *heap, *shadow, *roots[TREES];
static size_t nr_used;				/* objects at the heap's beginning */
static int uffd, collections;

static uint64_t live[WORDS];			/* bits of objects */
static size_t live_before[WORDS + 1];		/* objects in the words before */
static size_t first_word[PAGES];		/* where a new page's first object is from */
static char done[PAGES];			/* new pages that are there */
static size_t nr_pages;				/* new pages that have objects */
static int watching;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* Where the object that is live will be. */
static struct object *forward(const struct object *object)
{
	uint64_t below;
	size_t i;

	if (!object)
		return NULL;
	i = object - heap;
	below = live[i / 64] & ((1UL << i % 64) - 1);
	return heap + live_before[i / 64] + __builtin_popcountll(below);
}

static void mark(const struct object *object)
{
	size_t i;

	if (!object)
		return;
	i = object - heap;
	live[i / 64] |= 1UL << i % 64;
	mark(object->left);
	mark(object->right);
}

/* What each new page begins with. */
static void summarize(void)
{
	size_t count = 0, page = 0;

	for (size_t word = 0; word < WORDS; word++) {
		live_before[word] = count;
		count += __builtin_popcountll(live[word]);
		for (; page * PER_PAGE < count; page++)
			first_word[page] = word;
	}
	live_before[WORDS] = count;
	nr_used = count;
	nr_pages = page;
}

/* A new page's objects, from where they were. */
static void gather(struct object *to, size_t page)
{
	size_t word = first_word[page], count = 0, skip = page * PER_PAGE - live_before[word];

	for (; count < PER_PAGE && word < WORDS; word++) {
		for (uint64_t bits = live[word]; bits && count < PER_PAGE; bits &= bits - 1) {
			struct object *from = shadow + word * 64 + __builtin_ctzll(bits);

			if (skip) {
				skip--;
				continue;
			}
			to[count] = *from;
			to[count].left = forward(from->left);
			to[count++].right = forward(from->right);
		}
	}
}

/* Put a page in its place. Where nothing is live, it is empty, for new objects. */
static void provide(size_t page)
{
	static struct object buffer[PER_PAGE] __attribute__((aligned(4096)));
	struct uffdio_copy copy = {
		.dst = (uintptr_t)heap + page * PAGE,
		.src = (uintptr_t)buffer,
		.len = PAGE,
	};

	memset(buffer, 0, sizeof(buffer));
	if (page < nr_pages)
		gather(buffer, page);
	if (ioctl(uffd, UFFDIO_COPY, &copy))
		die("UFFDIO_COPY");
	done[page] = 1;
}

static void on_missing_page(int signal, siginfo_t *info, void *context)
{
	size_t offset = (uintptr_t)info->si_addr - (uintptr_t)heap;

	(void)context;
	if (signal != SIGBUS || offset >= HEAP)
		abort();
	provide(offset / PAGE);
}

static void begin_collection(void)
{
	struct uffdio_register watch = {
		.range = { .start = (uintptr_t)heap, .len = HEAP },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	memset(live, 0, sizeof(live));
	memset(done, 0, sizeof(done));
	for (int i = 0; i < TREES; i++)
		mark(roots[i]);
	summarize();
	for (int i = 0; i < TREES; i++)
		roots[i] = forward(roots[i]);
	if (mremap(heap, HEAP, HEAP, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
		   shadow) != shadow)
		die("mremap");
	if (ioctl(uffd, UFFDIO_REGISTER, &watch))
		die("UFFDIO_REGISTER");
	watching = 1;
	collections++;
}

static void end_collection(void)
{
	struct uffdio_range range = { .start = (uintptr_t)heap, .len = HEAP };

	if (!watching)
		return;
	for (size_t page = 0; page < nr_pages; page++)
		if (!done[page])
			provide(page);
	if (ioctl(uffd, UFFDIO_UNREGISTER, &range) || madvise(shadow, HEAP, MADV_DONTNEED))
		die("the end of a collection");
	watching = 0;
}

static struct object *make_tree(int depth, uint64_t value)
{
	struct object *object;

	if (!depth)
		return NULL;
	object = heap + nr_used++;
	object->value = value;
	object->left = make_tree(depth - 1, 2 * value);
	object->right = make_tree(depth - 1, 2 * value + 1);
	return object;
}

/* How many of its objects are what they were made to be. */
static size_t count_right(const struct object *object, uint64_t value)
{
	if (!object)
		return 0;
	return (object->value == value) + count_right(object->left, 2 * value) +
	       count_right(object->right, 2 * value + 1);
}

static void set_up(void)
{
	struct sigaction action = { .sa_sigaction = on_missing_page, .sa_flags = SA_SIGINFO };
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_SIGBUS };

	heap = mmap(NULL, HEAP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	shadow = mmap(NULL, HEAP, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (heap == MAP_FAILED || shadow == MAP_FAILED || uffd < 0 ||
	    ioctl(uffd, UFFDIO_API, &api) || sigaction(SIGBUS, &action, NULL))
		die("setting up");
}

int main(void)
{
	const size_t objects = (1UL << DEPTH) - 1;
	size_t right = 0;

	set_up();
	for (int step = 0; step < STEPS; step++) {
		if (nr_used + objects > OBJECTS)
			begin_collection();
		roots[step % TREES] = NULL;
		roots[step % TREES] = make_tree(DEPTH, step);
		end_collection();
	}
	raise(SIGSTOP);
	for (int i = 0; i < TREES; i++)
		right += count_right(roots[i], (STEPS - 1 - i) / TREES * TREES + i);
	raise(SIGSTOP);
	printf("%d collections, %zu objects as they were made\n", collections, right);
	return right != TREES * objects;
}
