// SPDX-License-Identifier: GPL-2.0
/*
 * A buffer of huge pages (glibc.malloc.hugetlb=2) that realloc() grows by half from
 * 4 MB to 96 MB. It is checked after every step, and whether all huge pages are back
 * when it was freed.
 *
 * glibc before 2.43 asks mremap() for whole small pages, and later munmap() for the
 * same, which refuses what is not whole huge pages. So mremap() does not grow to such
 * a size, and these copy then. All sizes here are whole huge pages with the header
 * that malloc() adds, for which any glibc asks right.
 */
#include <stdlib.h>
#include <unistd.h>

#include "stamp.h"

#define HUGE	(2UL << 20)
#define FIRST	(2 * HUGE)
#define LAST	(48 * HUGE)
#define HEADER	64
#define POOL	"/proc/sys/vm/nr_hugepages"
#define PAGES	"160"		/* for a copy beside the buffer as well */
#define TUNABLE	"GLIBC_TUNABLES"

static long read_meminfo(const char *field)
{
	FILE *file = fopen("/proc/meminfo", "r");
	char line[128], format[64];
	long value = -1;

	snprintf(format, sizeof(format), "%s: %%ld", field);
	while (file && value < 0 && fgets(line, sizeof(line), file))
		sscanf(line, format, &value);
	if (file)
		fclose(file);
	return value;
}

static long used_pages(void)
{
	return read_meminfo("HugePages_Total") - read_meminfo("HugePages_Free");
}

static void set_pool(const char *pages)
{
	FILE *file = fopen(POOL, "w");

	if (file) {
		fputs(pages, file);
		fclose(file);
	}
}

/* Whole small pages are stamped: the last one is not whole. */
static size_t stamped(size_t size)
{
	return size & ~(STAMP_PAGE - 1);
}

static int fail(const char *why)
{
	set_pool("0");
	printf("verdict: %s\n", why);
	return 1;
}

int main(int argc, char **argv)
{
	size_t size = 0, steps = 0, kept = 0;
	char *buf = NULL;
	long before;

	(void)argc;
	if (!getenv(TUNABLE)) {
		set_pool(PAGES);
		setenv(TUNABLE, "glibc.malloc.hugetlb=2", 1);
		execv("/proc/self/exe", argv);
		return fail("FAIL, exec");
	}
	before = used_pages();
	for (size_t whole = FIRST; whole <= LAST; whole = (whole + whole / 2) & ~(HUGE - 1)) {
		const size_t want = whole - HEADER;
		char *old = buf;

		buf = realloc(buf, want);
		if (!buf)
			return fail("FAIL, no memory");
		kept += buf == old;
		if (stamp_wrong(buf, 0, stamped(size), 1))
			return fail("wrong contents");
		stamp(buf, stamped(size), stamped(want), 1);
		if (used_pages() - before != (long)(whole / HUGE))
			return fail("no huge pages");
		size = want;
		steps++;
	}
	free(buf);
	if (used_pages() != before)
		return fail("huge pages lost");
	printf("%zu steps to %zu bytes, %zu of them in place\n", steps, size, kept);
	set_pool("0");
	return 0;
}
