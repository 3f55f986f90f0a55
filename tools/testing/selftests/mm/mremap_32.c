// SPDX-License-Identifier: GPL-2.0
/*
 * What mremap(2) does for a program of 32 bits. mremap_scale runs this on a kernel of 64
 * bits, where addresses and lengths that wrap here do not wrap in the kernel.
 *
 *	mremap_32 CASE END TOO_LONG
 *
 * END is that of the address space, TOO_LONG the errno for a new length beyond it. It exits
 * with 0 if all is well.
 *
 * It has no libc, of which there is seldom one of 32 bits, but tools/include/nolibc.
 */
#include <linux/mman.h>

#define PAGE		4096UL
#define HOME		0x40000000UL
#define AWAY		0x60000000UL

#ifndef MREMAP_OVERLAP
#define MREMAP_OVERLAP	32
#endif

#define ARRAY_SIZE(array)	(sizeof(array) / sizeof((array)[0]))

#define FIXED		(MREMAP_MAYMOVE | MREMAP_FIXED)
#define DONTUNMAP	(MREMAP_MAYMOVE | MREMAP_DONTUNMAP)
#define OVERLAP		(FIXED | MREMAP_OVERLAP)
#define EVERY_MAP	(MAP_FIXED_NOREPLACE | MAP_ANONYMOUS)

static unsigned long end;	/* of the address space */
static unsigned long too_long;
static int failures;

#define EXPECT(condition) do {						\
	if (!(condition)) {						\
		printf("# mremap_32.c:%d: not so: %s\n", __LINE__, #condition); \
		failures++;						\
	}								\
} while (0)

static unsigned long remap(unsigned long addr, unsigned long old_len,
			   unsigned long new_len, unsigned long flags, unsigned long new_addr)
{
	return my_syscall5(__NR_mremap, addr, old_len, new_len, flags, new_addr);
}

static void stamp(unsigned long addr, unsigned long pages)
{
	for (unsigned long i = 0; i < pages; i++)
		*(volatile unsigned long *)(addr + i * PAGE) = 77 + i;
}

static int has_stamps(unsigned long addr, unsigned long pages)
{
	for (unsigned long i = 0; i < pages; i++)
		if (*(volatile unsigned long *)(addr + i * PAGE) != 77 + i)
			return 0;
	return 1;
}

static unsigned long map(unsigned long addr, unsigned long pages, int flags)
{
	void *p = mmap((void *)addr, pages * PAGE, PROT_READ | PROT_WRITE,
		       flags | EVERY_MAP, -1, 0);

	EXPECT((unsigned long)p == addr);
	if ((unsigned long)p != addr)
		exit(1);
	stamp(addr, pages);
	return addr;
}

static int is_error(unsigned long ret)
{
	return ret > -4096UL;
}

/* Somewhere else, and all of it below the end. */
static void expect_moved(unsigned long ret, unsigned long from, unsigned long pages)
{
	EXPECT(!is_error(ret));
	if (is_error(ret))
		return;
	EXPECT(ret != from);
	EXPECT(ret <= end - pages * PAGE);
}

static void grows_at_the_end(void)
{
	const unsigned long addr = map(end - 2 * PAGE, 2, MAP_PRIVATE);
	unsigned long ret;

	EXPECT(remap(addr, 2 * PAGE, 3 * PAGE, 0, 0) == -(unsigned long)ENOMEM);
	EXPECT(remap(addr, 2 * PAGE, 0x20000000, 0, 0) == -(unsigned long)ENOMEM);
	EXPECT(has_stamps(addr, 2));
	ret = remap(addr, 2 * PAGE, 300 * PAGE, MREMAP_MAYMOVE, 0);
	expect_moved(ret, addr, 300);
	EXPECT(has_stamps(ret, 2));
	stamp(ret, 300);
	EXPECT(has_stamps(ret, 300));
}

static void moves_to_the_end(void)
{
	const unsigned long addr = map(HOME, 3, MAP_PRIVATE), to = end - 3 * PAGE;

	EXPECT(remap(addr, 3 * PAGE, 3 * PAGE, FIXED, to + PAGE) == -(unsigned long)EINVAL);
	EXPECT(remap(addr, 3 * PAGE, 4 * PAGE, FIXED, to) == -(unsigned long)EINVAL);
	EXPECT(remap(addr, 3 * PAGE, 3 * PAGE, FIXED, -PAGE) == -(unsigned long)EINVAL);
	EXPECT(has_stamps(addr, 3));
	EXPECT(remap(addr, 3 * PAGE, 3 * PAGE, FIXED, to) == to);
	EXPECT(has_stamps(to, 3));
	EXPECT(remap(to, 3 * PAGE, 3 * PAGE, FIXED, addr) == addr);
	EXPECT(has_stamps(addr, 3));
}

/* Sums of 32 bits would be small here; a length that is rounded up would be none. */
static void wraps(void)
{
	const unsigned long addr = map(HOME, 3, MAP_PRIVATE);
	const unsigned long most = -PAGE, last = -1UL, wraps = most - addr + 2 * PAGE;

	EXPECT(remap(addr, 3 * PAGE, wraps, 0, 0) ==
	       -(wraps > end ? too_long : (unsigned long)ENOMEM));
	EXPECT(remap(addr, 3 * PAGE, most, MREMAP_MAYMOVE, 0) == -too_long);
	EXPECT(remap(addr, 3 * PAGE, last, MREMAP_MAYMOVE, 0) == -too_long);
	EXPECT(remap(addr, most, PAGE, 0, 0) == -(unsigned long)EINVAL);
	EXPECT(remap(addr, last, PAGE, 0, 0) == -(unsigned long)EINVAL);
	EXPECT(remap(addr, most, most, FIXED, AWAY) == -(unsigned long)EINVAL);
	EXPECT(remap(addr, 3 * PAGE, last, FIXED, AWAY) == -(unsigned long)EINVAL);
	EXPECT(is_error(remap(addr, -addr + PAGE, -addr + PAGE, DONTUNMAP, 0)));
	EXPECT(has_stamps(addr, 3));
}

static void keeps_the_old_place(void)
{
	const unsigned long addr = map(HOME, 600, MAP_PRIVATE);
	const unsigned long to = remap(addr, 600 * PAGE, 600 * PAGE, DONTUNMAP, 0);

	expect_moved(to, addr, 600);
	EXPECT(has_stamps(to, 600));
	for (int i = 0; i < 600; i++)
		EXPECT(!*(volatile unsigned long *)(addr + i * PAGE));
}

static void has_a_second_view(void)
{
	const unsigned long addr = map(HOME, 5, MAP_SHARED);
	const unsigned long view = remap(addr, 0, 5 * PAGE, MREMAP_MAYMOVE, 0);

	expect_moved(view, addr, 5);
	EXPECT(has_stamps(view, 5));
	*(volatile unsigned long *)(view + PAGE) = 5;
	EXPECT(*(volatile unsigned long *)(addr + PAGE) == 5);
	EXPECT(has_stamps(addr, 1));
}

static void is_several(void)
{
	const unsigned long addr = map(HOME, 9, MAP_PRIVATE), to = end - 9 * PAGE;

	EXPECT(!syscall(__NR_mprotect, addr + 3 * PAGE, 3 * PAGE, PROT_READ));
	EXPECT(remap(addr, 9 * PAGE, 9 * PAGE, FIXED, to) == to);
	EXPECT(has_stamps(to, 9));
	EXPECT(syscall(__NR_mprotect, addr, 9 * PAGE, PROT_READ) == -1 && errno == ENOMEM);
}

static void overlaps(void)
{
	const unsigned long addr = map(end - 610 * PAGE, 600, MAP_PRIVATE);

	EXPECT(remap(addr, 600 * PAGE, 600 * PAGE, OVERLAP, addr + 10 * PAGE) ==
	       addr + 10 * PAGE);
	EXPECT(has_stamps(addr + 10 * PAGE, 600));
	EXPECT(remap(addr + 10 * PAGE, 600 * PAGE, 600 * PAGE, OVERLAP,
		     addr + 11 * PAGE) == -(unsigned long)EINVAL);
	EXPECT(remap(addr + 10 * PAGE, 600 * PAGE, 600 * PAGE, OVERLAP, addr) == addr);
	EXPECT(has_stamps(addr, 600));
}

static const struct {
	const char *name;
	void (*run)(void);
} cases[] = {
	{ "grows_at_the_end", grows_at_the_end },
	{ "moves_to_the_end", moves_to_the_end },
	{ "wraps", wraps },
	{ "keeps_the_old_place", keeps_the_old_place },
	{ "has_a_second_view", has_a_second_view },
	{ "is_several", is_several },
	{ "overlaps", overlaps },
};

/* The stack is somewhere below the end, by chance: if it is there, once more. */
static void make_room(char **argv, char **envp)
{
	const unsigned long len = 1024 * PAGE;
	void *p = mmap((void *)(end - len), len, PROT_NONE, MAP_PRIVATE | EVERY_MAP, -1, 0);

	if (p == MAP_FAILED && errno == EEXIST)
		execve("/proc/self/exe", argv, envp);
	munmap(p, len);
}

int main(int argc, char **argv, char **envp)
{
	if (argc != 4)
		return 1;
	end = strtoul(argv[2], NULL, 16);
	too_long = strtoul(argv[3], NULL, 10);
	make_room(argv, envp);
	for (unsigned int i = 0; i < ARRAY_SIZE(cases); i++) {
		if (strcmp(argv[1], cases[i].name))
			continue;
		cases[i].run();
		return !!failures;
	}
	return 1;
}
