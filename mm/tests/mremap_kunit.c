// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests for mm/mremap.c, which includes this file at its end. Suites:
 *
 *   mremap_walk     the steps of a move, without page tables
 *   mremap_tables   page tables that move, and move back, in the real address
 *                   space of a thread
 */

#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/prandom.h>
#include <linux/shmem_fs.h>

#include "mremap_kunit.h"

/* Steps */

/* A length, in quarters of the size of an entry and in pages */
struct span {
	int quarters;
	int pages;
};

/* Where an old and a new address are in their entries */
struct extent_case {
	const char *name;
	struct span old;
	struct span new;
	struct span len;
	struct span want;
};

static const struct extent_case extent_cases[] = {
	{ "whole", { 0 }, { 0 }, { 12 }, { 4 } },
	{ "whole, and the last", { 0 }, { 0 }, { 4 }, { 4 } },
	{ "start only", { 0 }, { 0 }, { 4, -1 }, { 4, -1 } },
	{ "one page", { 0 }, { 0 }, { 0, 1 }, { 0, 1 } },
	{ "from the middle", { 2 }, { 2 }, { 12 }, { 2 } },
	{ "old boundary, new one page above", { 0 }, { 0, 1 }, { 12 }, { 4, -1 } },
	{ "old one page above, new boundary", { 0, 1 }, { 0 }, { 12 }, { 4, -1 } },
	{ "old boundary, new last page", { 0 }, { 4, -1 }, { 12 }, { 0, 1 } },
	{ "old last page, new boundary", { 4, -1 }, { 0 }, { 12 }, { 0, 1 } },
	{ "old ends first", { 3 }, { 1 }, { 12 }, { 1 } },
	{ "new ends first", { 1 }, { 3 }, { 12 }, { 1 } },
	{ "range ends first", { 1 }, { 2 }, { 2, -1 }, { 2, -1 } },
};

KUNIT_ARRAY_PARAM_DESC(extent, extent_cases, name);

static unsigned long bytes_of(struct span span, unsigned long size)
{
	return span.quarters * (size / 4) + span.pages * PAGE_SIZE;
}

static void expect_extent(struct kunit *test, const struct extent_case *c,
			  unsigned long size, unsigned long old_entry,
			  unsigned long new_entry)
{
	unsigned long old = old_entry + bytes_of(c->old, size);
	unsigned long new = new_entry + bytes_of(c->new, size);
	const struct pagetable_move pm = {
		.cursor = old,
		.wide_end = old + bytes_of(c->len, size),
		.shift = new - old,
	};

	KUNIT_EXPECT_EQ(test, new_addr_of(&pm), new);
	KUNIT_EXPECT_EQ(test, get_extent(&pm, size), bytes_of(c->want, size));
}

static void extent_ends_at_boundaries(struct kunit *test)
{
	const struct extent_case *c = test->param_value;

	expect_extent(test, c, PMD_SIZE, PMD_SIZE, 5 * PMD_SIZE);
	expect_extent(test, c, PMD_SIZE, 5 * PMD_SIZE, PMD_SIZE);
	expect_extent(test, c, PUD_SIZE, PUD_SIZE, 5 * PUD_SIZE);
	expect_extent(test, c, PUD_SIZE, 5 * PUD_SIZE, PUD_SIZE);
}

/* A widened walk ends where its last table ends. */
static void extent_covers_widened_tail(struct kunit *test)
{
	const struct pagetable_move pm = {
		.start = PMD_SIZE,
		.end = 2 * PMD_SIZE + PAGES(3),
		.cursor = 2 * PMD_SIZE,
		.shift = 4 * PMD_SIZE,
		.wide_start = PMD_SIZE,
		.wide_end = 3 * PMD_SIZE,
	};

	KUNIT_EXPECT_EQ(test, get_extent(&pm, PMD_SIZE), PMD_SIZE);
}

static void flush_covers_all_that_moved(struct kunit *test)
{
	static struct move_window win;

	init_window(&win);
	note_flush(&win, PAGES(20), PAGES(2), true);
	KUNIT_EXPECT_EQ(test, win.flush_start, PAGES(20));
	KUNIT_EXPECT_EQ(test, win.flush_end, PAGES(22));
	note_flush(&win, PAGES(30), PAGES(1), true);
	KUNIT_EXPECT_EQ(test, win.flush_start, PAGES(20));
	KUNIT_EXPECT_EQ(test, win.flush_end, PAGES(31));
	note_flush(&win, PAGES(10), PAGES(1), true);
	KUNIT_EXPECT_EQ(test, win.flush_start, PAGES(10));
	KUNIT_EXPECT_EQ(test, win.flush_end, PAGES(31));
	note_flush(&win, PAGES(12), PAGES(1), true);
	KUNIT_EXPECT_EQ(test, win.flush_start, PAGES(10));
	KUNIT_EXPECT_EQ(test, win.flush_end, PAGES(31));
}

static void windows_are_limited(struct kunit *test)
{
	const unsigned long size = WINDOW_TABLES * PMD_SIZE;
	const unsigned long start = 4 * size, far = 8 * size;
	struct pagetable_move pm = {
		.cursor = start + PAGES(3),
		.wide_end = far,
		.shift = PAGES(1),
	};

	KUNIT_EXPECT_EQ(test, window_limit(&pm, far), start + size);
	/* Not beyond the end of what can be walked at once. */
	KUNIT_EXPECT_EQ(test, window_limit(&pm, pm.cursor + PAGES(5)), pm.cursor + PAGES(5));
	/* Tables that move whole are no work. */
	pm.shift = PMD_SIZE;
	if (can_move_pte_tables(&pm))
		KUNIT_EXPECT_EQ(test, window_limit(&pm, far), far);
	pm.ptes_only = true;
	KUNIT_EXPECT_EQ(test, window_limit(&pm, far), start + size);
	pm.per_table = true;
	KUNIT_EXPECT_EQ(test, window_limit(&pm, far), start + PMD_SIZE);

	/* In the last tables of the address space, whose end would be 0. */
	pm = (struct pagetable_move) {
		.cursor = -2 * PMD_SIZE,
		.wide_end = -PAGE_SIZE,
		.shift = PAGES(1) - size,
	};
	KUNIT_EXPECT_EQ(test, window_limit(&pm, pm.wide_end), pm.wide_end);
}

/* Empty entries are skipped up to the one that is not, or to the end. */
static void empty_entries_are_skipped(struct kunit *test)
{
	struct pagetable_move pm = { .cursor = PMD_SIZE + PAGES(3) };
	struct move_window win = {
		.old_pmds = kunit_kcalloc(test, PTRS_PER_PMD, sizeof(pmd_t), GFP_KERNEL),
	};

	if (PTRS_PER_PMD < 8)
		kunit_skip(test, "needs tables of PMDs");
	KUNIT_ASSERT_NOT_NULL(test, win.old_pmds);
	skip_empty_pmds(&pm, &win, 3 * PMD_SIZE + PAGES(7));
	KUNIT_EXPECT_EQ(test, pm.cursor, 3 * PMD_SIZE + PAGES(7));
	skip_empty_pmds(&pm, &win, 4 * PMD_SIZE);
	KUNIT_EXPECT_EQ(test, pm.cursor, 4 * PMD_SIZE);

	memset(&win.old_pmds[6], 0xff, sizeof(pmd_t));
	skip_empty_pmds(&pm, &win, 8 * PMD_SIZE);
	KUNIT_EXPECT_EQ(test, pm.cursor, 6 * PMD_SIZE);
	skip_empty_pmds(&pm, &win, 8 * PMD_SIZE);
	KUNIT_EXPECT_EQ(test, pm.cursor, 6 * PMD_SIZE);

	/* The last table of the address space: not on from its first entry. */
	pm.cursor = -2 * PMD_SIZE;
	skip_empty_pmds(&pm, &win, -PAGE_SIZE);
	KUNIT_EXPECT_EQ(test, pm.cursor, -PAGE_SIZE);
}

static void moved_entries_are_soft_dirty(struct kunit *test)
{
	pgprot_t prot = vm_get_page_prot(VM_READ);
	pte_t present = pte_clear_soft_dirty(mk_pte(ZERO_PAGE(0), prot));
	pte_t swap = swp_entry_to_pte(swp_entry(0, 5));
	bool tracked = IS_ENABLED(CONFIG_MEM_SOFT_DIRTY);
	pte_t moved;

	moved = move_soft_dirty_pte(present);
	KUNIT_EXPECT_TRUE(test, pte_present(moved));
	KUNIT_EXPECT_EQ(test, !!pte_soft_dirty(moved), tracked);
	KUNIT_EXPECT_TRUE(test, pte_same(pte_clear_soft_dirty(moved), present));

	moved = move_soft_dirty_pte(swap);
	KUNIT_EXPECT_FALSE(test, pte_present(moved));
	KUNIT_EXPECT_EQ(test, !!pte_swp_soft_dirty(moved), tracked);
	KUNIT_EXPECT_TRUE(test, pte_same(pte_swp_clear_soft_dirty(moved), swap));
	KUNIT_EXPECT_TRUE(test, pte_same(move_soft_dirty_pte(moved), moved));
}

static struct kunit_case walk_tests[] = {
	KUNIT_CASE_PARAM(extent_ends_at_boundaries, extent_gen_params),
	KUNIT_CASE(extent_covers_widened_tail),
	KUNIT_CASE(flush_covers_all_that_moved),
	KUNIT_CASE(windows_are_limited),
	KUNIT_CASE(empty_entries_are_skipped),
	KUNIT_CASE(moved_entries_are_soft_dirty),
	{}
};

static struct kunit_suite walk_suite = {
	.name = "mremap_walk",
	.test_cases = walk_tests,
};

/* Which tables are the range's own */

static void stack_table_aligns_within_its_vma(struct kunit *test)
{
	unsigned long middle = SRC_AT + PMD_SIZE + PAGES(5);
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;

	map_at(test, SRC_AT + PAGES(3), 2 * PMD_SIZE, RW);
	mmap_write_lock(mm);
	vma = vma_lookup(mm, middle);
	/* The part below is its own: that is no hindrance for a stack. */
	KUNIT_EXPECT_TRUE(test, can_align_down(vma, middle, true));
	KUNIT_EXPECT_FALSE(test, can_align_down(vma, middle, false));
	/* The part below is not mapped. */
	KUNIT_EXPECT_TRUE(test, can_align_down(vma, SRC_AT + PAGES(5), true));
	KUNIT_EXPECT_FALSE(test, can_align_down(vma, SRC_AT + PAGES(5), false));
	KUNIT_EXPECT_TRUE(test, can_align_down(vma, SRC_AT + PAGES(3), false));
	mmap_write_unlock(mm);

	/* It is somebody else's. */
	map_at(test, SRC_AT, PAGES(1), RWX);
	mmap_write_lock(mm);
	vma = vma_lookup(mm, middle);
	KUNIT_EXPECT_TRUE(test, can_align_down(vma, middle, true));
	KUNIT_EXPECT_FALSE(test, can_align_down(vma, SRC_AT + PAGES(5), true));
	KUNIT_EXPECT_FALSE(test, can_align_down(vma, SRC_AT + PAGES(3), false));
	mmap_write_unlock(mm);
	close_space(test);
}

/* May a last table be widened at the old place, and at the new one? */
static void expect_free_above(struct kunit *test, struct vm_area_struct *vma,
			      unsigned long end, bool old, bool new)
{
	const struct pagetable_move pm = { .dst = vma, .end = end };

	mmap_write_lock(current->mm);
	KUNIT_EXPECT_EQ(test, can_align_up(vma, end), old);
	KUNIT_EXPECT_EQ(test, can_align_up_new(&pm), new);
	mmap_write_unlock(current->mm);
}

static void table_aligns_up_to_what_is_mapped(struct kunit *test)
{
	unsigned long end = SRC_AT + PAGES(5);
	struct vm_area_struct *vma;

	map_at(test, SRC_AT, PAGES(5), RW);
	vma = vma_at(SRC_AT);
	expect_free_above(test, vma, end, true, true);
	/* What is mapped above the end hinders the old place only. */
	expect_free_above(test, vma, end - PAGES(1), false, true);
	/* Not in the same table */
	map_at(test, SRC_AT + PMD_SIZE, PAGES(1), RW);
	expect_free_above(test, vma, end, true, true);
	/* In its last slot */
	map_at(test, SRC_AT + PMD_SIZE - PAGES(1), PAGES(1), RWX);
	expect_free_above(test, vma, end, false, false);
	close_space(test);
}

/* Page tables */

#define TABLE_PAGES	((unsigned long)PTRS_PER_PTE)
#define LAST_PAGE(size)	((size) / PAGE_SIZE - 1)

enum layout_flags {
	PTES_ONLY	= BIT(0),	/* entries have to move one by one */
	MORE_BELOW	= BIT(1),	/* the source's VMA begins a page below */
	MORE_ABOVE	= BIT(2),	/* and ends a page above */
	GROWS		= BIT(3),	/* the new VMA ends a page above */
	OTHER_BELOW_SRC	= BIT(4),	/* another VMA is right below */
	OTHER_ABOVE_SRC	= BIT(5),
	OTHER_BELOW_DST	= BIT(6),
	OTHER_ABOVE_DST	= BIT(7),
	TABLE_AT_DST	= BIT(8),	/* an empty table for the first page */
	WIDE_HEAD	= BIT(9),	/* the first table is to move whole */
	WIDE_TAIL	= BIT(10),	/* the last one, too */
	NEEDS_PUD	= BIT(11),
};

#define MAX_PAGES 6

struct move_case {
	const char *name;
	unsigned long src;		/* from SRC_AT, in bytes */
	unsigned long dst;		/* from DST_AT */
	unsigned long len;
	unsigned int flags;		/* enum layout_flags */
	unsigned int nr_pages;
	unsigned long pages[MAX_PAGES];	/* that are there, from the start */
	unsigned long puds;		/* what is to move whole */
	unsigned long pmds;
	unsigned long ptes;		/* and what one by one */
};

static const struct move_case move_cases[] = {
	{ .name = "one page", .len = PAGES(1), .nr_pages = 1, .ptes = 1 },
	{ .name = "nothing", .len = 2 * PMD_SIZE },
	{ .name = "to one page above", .dst = PAGES(1), .len = 2 * PMD_SIZE,
	  .nr_pages = 5, .pages = { 0, 1, TABLE_PAGES - 1, TABLE_PAGES,
				    2 * TABLE_PAGES - 1 }, .ptes = 5 },
	{ .name = "to one page below", .src = PAGES(1), .len = 2 * PMD_SIZE,
	  .nr_pages = 5, .pages = { 0, TABLE_PAGES - 2, TABLE_PAGES - 1,
				    TABLE_PAGES, 2 * TABLE_PAGES - 1 },
	  .ptes = 5 },
	{ .name = "to one page above, from the middle of its mapping",
	  .src = PAGES(3), .dst = PAGES(4), .len = 2 * PMD_SIZE,
	  .flags = MORE_BELOW | MORE_ABOVE, .nr_pages = 4,
	  .pages = { 0, TABLE_PAGES - 4, TABLE_PAGES - 3, 2 * TABLE_PAGES - 1 },
	  .ptes = 4 },
	{ .name = "to another offset, between other mappings",
	  .src = PAGES(3), .dst = PAGES(4), .len = 2 * PMD_SIZE,
	  .flags = OTHER_BELOW_SRC | OTHER_ABOVE_SRC | OTHER_BELOW_DST |
		   OTHER_ABOVE_DST, .nr_pages = 4,
	  .pages = { 0, TABLE_PAGES - 4, TABLE_PAGES - 3, 2 * TABLE_PAGES - 1 },
	  .ptes = 4 },
	{ .name = "more tables than a window has room for", .dst = PAGES(1),
	  .len = (WINDOW_TABLES + 8) * PMD_SIZE, .nr_pages = 6,
	  .pages = { 0, WINDOW_TABLES * TABLE_PAGES - 1,
		     WINDOW_TABLES * TABLE_PAGES,
		     WINDOW_TABLES * TABLE_PAGES + 1,
		     (WINDOW_TABLES + 2) * TABLE_PAGES,
		     (WINDOW_TABLES + 8) * TABLE_PAGES - 1 }, .ptes = 6 },
	{ .name = "to one page above, in the lower part of a table",
	  .dst = PAGES(1), .len = 3 * PMD_SIZE, .nr_pages = 1,
	  .pages = { TABLE_PAGES }, .ptes = 1 },
	{ .name = "to one page above, in the upper part of a table",
	  .dst = PAGES(1), .len = 3 * PMD_SIZE, .nr_pages = 1,
	  .pages = { 2 * TABLE_PAGES - 1 }, .ptes = 1 },
	{ .name = "to one page above, in the lower parts of two tables",
	  .dst = PAGES(1), .len = 3 * PMD_SIZE, .nr_pages = 2,
	  .pages = { TABLE_PAGES, 2 * TABLE_PAGES }, .ptes = 2 },
	{ .name = "one table", .len = PMD_SIZE, .nr_pages = 2,
	  .pages = { 0, TABLE_PAGES - 1 }, .pmds = 1 },
	{ .name = "two tables with none between", .len = 3 * PMD_SIZE,
	  .nr_pages = 2, .pages = { 0, 3 * TABLE_PAGES - 1 }, .pmds = 2 },
	{ .name = "a table in the middle of its mapping", .src = PMD_SIZE,
	  .len = PMD_SIZE, .flags = MORE_BELOW | MORE_ABOVE, .nr_pages = 2,
	  .pages = { 0, TABLE_PAGES - 1 }, .pmds = 1 },
	{ .name = "a table, tables have to stay", .len = PMD_SIZE,
	  .flags = PTES_ONLY, .nr_pages = 2, .pages = { 0, TABLE_PAGES - 1 },
	  .ptes = 2 },
	{ .name = "more tables than a window has room for, have to stay",
	  .len = (WINDOW_TABLES + 1) * PMD_SIZE, .flags = PTES_ONLY,
	  .nr_pages = 3, .pages = { 0, WINDOW_TABLES * TABLE_PAGES - 1,
				    WINDOW_TABLES * TABLE_PAGES }, .ptes = 3 },

	{ .name = "upper part of a table", .src = PAGES(3), .dst = PAGES(3),
	  .len = PMD_SIZE - PAGES(3), .flags = WIDE_HEAD, .nr_pages = 2,
	  .pages = { 0, TABLE_PAGES - 4 }, .pmds = 1 },
	{ .name = "upper part of a table and one more", .src = PAGES(3),
	  .dst = PMD_SIZE + PAGES(3), .len = 2 * PMD_SIZE - PAGES(3),
	  .flags = WIDE_HEAD, .nr_pages = 3,
	  .pages = { 0, TABLE_PAGES - 4, TABLE_PAGES - 3 }, .pmds = 2 },
	{ .name = "upper part of an empty table and one more", .src = PAGES(3),
	  .dst = PAGES(3), .len = 2 * PMD_SIZE - PAGES(3), .flags = WIDE_HEAD,
	  .nr_pages = 1, .pages = { TABLE_PAGES }, .pmds = 1 },
	{ .name = "middle of a table", .src = PAGES(3), .dst = PAGES(3),
	  .len = PMD_SIZE - PAGES(4), .flags = WIDE_HEAD | WIDE_TAIL,
	  .nr_pages = 2, .pages = { 0, TABLE_PAGES - 5 }, .pmds = 1 },
	{ .name = "lower part of a table", .len = PMD_SIZE - PAGES(4),
	  .flags = WIDE_TAIL, .nr_pages = 2, .pages = { 0, TABLE_PAGES - 5 },
	  .pmds = 1 },
	{ .name = "middle of a table, another mapping below", .src = PAGES(3),
	  .dst = PAGES(3), .len = PMD_SIZE - PAGES(5), .flags = OTHER_BELOW_SRC,
	  .nr_pages = 2, .pages = { 0, TABLE_PAGES - 6 }, .ptes = 2 },
	{ .name = "middle of a table, another mapping above the new place",
	  .src = PAGES(3), .dst = PAGES(3), .len = PMD_SIZE - PAGES(5),
	  .flags = OTHER_ABOVE_DST, .nr_pages = 2,
	  .pages = { 0, TABLE_PAGES - 6 }, .ptes = 2 },
	{ .name = "upper part, tables have to stay", .src = PAGES(3),
	  .dst = PAGES(3), .len = PMD_SIZE - PAGES(3), .flags = PTES_ONLY,
	  .nr_pages = 2, .pages = { 0, TABLE_PAGES - 4 }, .ptes = 2 },
	{ .name = "upper part, to another offset", .src = PAGES(3),
	  .dst = PAGES(4), .len = PMD_SIZE, .nr_pages = 3,
	  .pages = { 0, TABLE_PAGES - 5, TABLE_PAGES - 4 }, .ptes = 3 },
	{ .name = "upper part of a table and of its mapping", .src = PAGES(3),
	  .dst = PAGES(3), .len = PMD_SIZE - PAGES(3), .flags = MORE_BELOW,
	  .nr_pages = 2, .pages = { 0, TABLE_PAGES - 4 }, .ptes = 2 },
	{ .name = "upper part, another mapping below", .src = PAGES(3),
	  .dst = PAGES(3), .len = PMD_SIZE - PAGES(3),
	  .flags = OTHER_BELOW_SRC, .nr_pages = 2,
	  .pages = { 0, TABLE_PAGES - 4 }, .ptes = 2 },
	{ .name = "upper part, another mapping below the new place",
	  .src = PAGES(3), .dst = PAGES(3), .len = PMD_SIZE - PAGES(3),
	  .flags = OTHER_BELOW_DST, .nr_pages = 2,
	  .pages = { 0, TABLE_PAGES - 4 }, .ptes = 2 },

	{ .name = "a table and the lower part of one",
	  .len = PMD_SIZE + PAGES(3), .flags = WIDE_TAIL, .nr_pages = 3,
	  .pages = { 1, TABLE_PAGES, TABLE_PAGES + 2 }, .pmds = 2 },
	{ .name = "upper half and lower half", .src = PMD_SIZE / 2,
	  .dst = PMD_SIZE / 2, .len = PMD_SIZE,
	  .flags = WIDE_HEAD | WIDE_TAIL, .nr_pages = 4,
	  .pages = { 0, TABLE_PAGES / 2 - 1, TABLE_PAGES / 2, TABLE_PAGES - 1 },
	  .pmds = 2 },
	{ .name = "a page of one table and a page of the next",
	  .src = PMD_SIZE - PAGES(1), .dst = PMD_SIZE - PAGES(1),
	  .len = PAGES(2), .nr_pages = 2, .pages = { 0, 1 }, .ptes = 2 },
	{ .name = "lower part, mapping grows", .len = PMD_SIZE + PAGES(3),
	  .flags = GROWS | WIDE_TAIL, .nr_pages = 2,
	  .pages = { TABLE_PAGES, TABLE_PAGES + 2 }, .pmds = 1 },
	{ .name = "lower part, mapping grows up to another",
	  .len = PMD_SIZE + PAGES(3), .flags = GROWS | OTHER_ABOVE_DST,
	  .nr_pages = 2, .pages = { 0, TABLE_PAGES + 2 }, .pmds = 1, .ptes = 1 },
	{ .name = "lower part of a table and of its mapping",
	  .len = PMD_SIZE + PAGES(3), .flags = MORE_ABOVE, .nr_pages = 2,
	  .pages = { 0, TABLE_PAGES + 2 }, .pmds = 1, .ptes = 1 },
	{ .name = "lower part, another mapping above",
	  .len = PMD_SIZE + PAGES(3), .flags = OTHER_ABOVE_SRC, .nr_pages = 2,
	  .pages = { 0, TABLE_PAGES + 2 }, .pmds = 1, .ptes = 1 },
	{ .name = "lower part, another mapping above the new place",
	  .len = PMD_SIZE + PAGES(3), .flags = OTHER_ABOVE_DST, .nr_pages = 2,
	  .pages = { 0, TABLE_PAGES + 2 }, .pmds = 1, .ptes = 1 },
	{ .name = "lower part, tables have to stay",
	  .len = PMD_SIZE + PAGES(3), .flags = PTES_ONLY, .nr_pages = 2,
	  .pages = { 0, TABLE_PAGES + 2 }, .ptes = 2 },

	{ .name = "a table, the new slot is taken", .len = 2 * PMD_SIZE,
	  .flags = TABLE_AT_DST, .nr_pages = 3,
	  .pages = { 0, TABLE_PAGES - 1, TABLE_PAGES }, .pmds = 1, .ptes = 2 },
	{ .name = "upper part, the new slot is taken", .src = PAGES(3),
	  .dst = PAGES(3), .len = PMD_SIZE - PAGES(3),
	  .flags = TABLE_AT_DST | WIDE_HEAD, .nr_pages = 2,
	  .pages = { 0, TABLE_PAGES - 4 }, .ptes = 2 },
	{ .name = "upper and lower half, the first new slot is taken",
	  .src = PMD_SIZE / 2, .dst = PMD_SIZE / 2, .len = PMD_SIZE,
	  .flags = TABLE_AT_DST | WIDE_HEAD | WIDE_TAIL, .nr_pages = 4,
	  .pages = { 0, TABLE_PAGES / 2 - 1, TABLE_PAGES / 2, TABLE_PAGES - 1 },
	  .pmds = 1, .ptes = 2 },

	{ .name = "a PMD table", .len = PUD_SIZE, .flags = NEEDS_PUD,
	  .nr_pages = 2, .pages = { 0, LAST_PAGE(PUD_SIZE) }, .puds = 1 },
	{ .name = "a PMD table and a page", .len = PUD_SIZE + PAGES(1),
	  .flags = NEEDS_PUD | WIDE_TAIL, .nr_pages = 2,
	  .pages = { 0, LAST_PAGE(PUD_SIZE) + 1 }, .puds = 1, .pmds = 1 },
	{ .name = "tables, then a PMD table", .src = PMD_SIZE, .dst = PMD_SIZE,
	  .len = 2 * PUD_SIZE - PMD_SIZE, .flags = NEEDS_PUD, .nr_pages = 2,
	  .pages = { 0, LAST_PAGE(2 * PUD_SIZE - PMD_SIZE) },
	  .puds = 1, .pmds = 1 },
	{ .name = "part of a PMD table", .src = PUD_SIZE - PMD_SIZE + PAGES(3),
	  .dst = PUD_SIZE - PMD_SIZE + PAGES(3), .len = PMD_SIZE,
	  .flags = NEEDS_PUD | WIDE_HEAD | WIDE_TAIL, .nr_pages = 2,
	  .pages = { 0, TABLE_PAGES - 1 }, .pmds = 2 },
	{ .name = "three PMD tables", .len = 3 * PUD_SIZE, .flags = NEEDS_PUD,
	  .nr_pages = 4, .pages = { 0, LAST_PAGE(PUD_SIZE) + 1,
				    LAST_PAGE(2 * PUD_SIZE),
				    LAST_PAGE(3 * PUD_SIZE) }, .puds = 3 },
	{ .name = "a PMD table, none, and one more", .len = 3 * PUD_SIZE,
	  .flags = NEEDS_PUD, .nr_pages = 2,
	  .pages = { 0, LAST_PAGE(3 * PUD_SIZE) }, .puds = 2 },
	{ .name = "no PMD table, then one", .len = 2 * PUD_SIZE,
	  .flags = NEEDS_PUD, .nr_pages = 1,
	  .pages = { LAST_PAGE(2 * PUD_SIZE) }, .puds = 1 },
	{ .name = "a PMD table to another offset", .dst = PMD_SIZE,
	  .len = PUD_SIZE, .flags = NEEDS_PUD, .nr_pages = 2,
	  .pages = { 0, LAST_PAGE(PUD_SIZE) }, .pmds = 2 },
	{ .name = "no PMD table, then one, to another offset, the new slot is taken",
	  .dst = PMD_SIZE, .len = 2 * PUD_SIZE, .flags = NEEDS_PUD | TABLE_AT_DST,
	  .nr_pages = 1, .pages = { LAST_PAGE(2 * PUD_SIZE) }, .pmds = 1 },
	{ .name = "a PMD table to one page above", .dst = PAGES(1),
	  .len = PUD_SIZE, .flags = NEEDS_PUD, .nr_pages = 3,
	  .pages = { 0, LAST_PAGE(PUD_SIZE) - 1, LAST_PAGE(PUD_SIZE) },
	  .ptes = 3 },
	{ .name = "a PMD table, tables have to stay", .len = PUD_SIZE,
	  .flags = NEEDS_PUD | PTES_ONLY, .nr_pages = 2,
	  .pages = { 0, LAST_PAGE(PUD_SIZE) }, .ptes = 2 },
	{ .name = "a PMD table, the new slot is taken", .len = PUD_SIZE,
	  .flags = NEEDS_PUD | TABLE_AT_DST, .nr_pages = 3,
	  .pages = { 0, TABLE_PAGES, LAST_PAGE(PUD_SIZE) },
	  .pmds = 2, .ptes = 1 },
};

KUNIT_ARRAY_PARAM_DESC(move, move_cases, name);

/* Where no tables can move, entries do. */
static void skip_impossible(struct kunit *test, const struct move_case *c)
{
	if (!(c->flags & NEEDS_PUD))
		return;
	if (!IS_ENABLED(CONFIG_64BIT))
		kunit_skip(test, "needs 64-bit addresses");
	if (arch_supports_page_table_move() && !IS_ENABLED(CONFIG_HAVE_MOVE_PUD))
		kunit_skip(test, "needs CONFIG_HAVE_MOVE_PUD");
}

/*
 * Make the VMA to move to, as mremap() does: with the anon_vma and the offset
 * that let rmap find the pages there. The source stays mapped.
 */
static void copy_mapping(struct kunit *test, struct pagetable_move *pm,
			 unsigned long start, unsigned long len,
			 unsigned long dst, unsigned long dst_len)
{
	struct mm_struct *mm = current->mm;

	*pm = (struct pagetable_move) {
		.start = start,
		.end = start + len,
		.shift = dst - start,
		.count_ptes = true,
	};
	mmap_write_lock(mm);
	pm->src = vma_lookup(mm, start);
	if (pm->src) {
		vma_start_write(pm->src);
		pm->dst = vma_merge_copy(pm->src, dst, dst_len,
					 vma_pgoff_offset(pm->src, start),
					 start, start + len);
		if (!pm->dst)
			pm->dst = copy_vma(pm->src, dst, dst_len,
					   vma_pgoff_offset(pm->src, start));
	}
	if (pm->dst)
		vm_stat_account(mm, pm->dst->vm_flags, dst_len >> PAGE_SHIFT);
	mmap_write_unlock(mm);
	KUNIT_ASSERT_NOT_NULL(test, pm->dst);
}

/* Fault the page in and drop it again, so that its table is there. */
static void leave_table(struct kunit *test, unsigned long addr)
{
	struct vm_area_struct *vma = vma_at(addr);

	stamp(test, addr);
	mmap_write_lock(current->mm);
	zap_page_range_single(vma, addr, PAGE_SIZE, NULL);
	mmap_write_unlock(current->mm);
	KUNIT_EXPECT_NULL(test, page_at(addr));
}

static unsigned long page_if(const struct move_case *c, unsigned int flag)
{
	return c->flags & flag ? PAGE_SIZE : 0;
}

struct neighbour {
	unsigned int more;	/* flag: of the same VMA */
	unsigned int other;	/* flag: of a VMA of its own */
	unsigned long addr;
};

#define NR_NEIGHBOURS 4

/* Pages around both places, which are not to be touched. */
static void list_neighbours(const struct move_case *c, struct neighbour *n)
{
	unsigned long src = SRC_AT + c->src, dst = DST_AT + c->dst;
	unsigned long grown = page_if(c, GROWS);

	n[0] = (struct neighbour) { MORE_BELOW, OTHER_BELOW_SRC, src - PAGES(1) };
	n[1] = (struct neighbour) { MORE_ABOVE, OTHER_ABOVE_SRC, src + c->len };
	n[2] = (struct neighbour) { 0, OTHER_BELOW_DST, dst - PAGES(1) };
	n[3] = (struct neighbour) { 0, OTHER_ABOVE_DST, dst + c->len + grown };
}

static void set_up_neighbours(struct kunit *test, const struct move_case *c)
{
	struct neighbour n[NR_NEIGHBOURS];
	unsigned int i;

	list_neighbours(c, n);
	for (i = 0; i < NR_NEIGHBOURS; i++) {
		if (c->flags & n[i].other)
			map_at(test, n[i].addr, PAGES(1), RWX);
		if (c->flags & (n[i].more | n[i].other))
			stamp(test, n[i].addr);
	}
}

static void expect_neighbours(struct kunit *test, const struct move_case *c)
{
	struct neighbour n[NR_NEIGHBOURS];
	unsigned int i;

	list_neighbours(c, n);
	for (i = 0; i < NR_NEIGHBOURS; i++) {
		if (c->flags & (n[i].more | n[i].other))
			expect_stamp(test, n[i].addr);
	}
}

static void set_up_source(struct kunit *test, const struct move_case *c, struct page **pages)
{
	unsigned long below = page_if(c, MORE_BELOW);
	unsigned long above = page_if(c, MORE_ABOVE);
	unsigned long src = SRC_AT + c->src;
	unsigned int i;

	skip_impossible(test, c);
	map_at(test, src - below, below + c->len + above, RW);
	for (i = 0; i < c->nr_pages; i++) {
		unsigned long addr = src + PAGES(c->pages[i]);

		stamp(test, addr);
		pages[i] = page_at(addr);
		KUNIT_ASSERT_NOT_NULL(test, pages[i]);
	}
}

static void set_up_move(struct kunit *test, const struct move_case *c,
			struct pagetable_move *pm, struct page **pages)
{
	set_up_source(test, c, pages);
	copy_mapping(test, pm, SRC_AT + c->src, c->len, DST_AT + c->dst,
		     c->len + page_if(c, GROWS));
	pm->ptes_only = c->flags & PTES_ONLY;
	set_up_neighbours(test, c);
	if (c->flags & TABLE_AT_DST)
		leave_table(test, DST_AT + c->dst);
}

static void expect_widened(struct kunit *test, const struct move_case *c,
			   struct pagetable_move *pm)
{
	unsigned long start = pm->start, end = pm->end;
	bool whole = can_move_pte_tables(pm);

	if (whole && (c->flags & WIDE_HEAD))
		start &= PMD_MASK;
	if (whole && (c->flags & WIDE_TAIL))
		end = ALIGN(end, PMD_SIZE);
	mmap_write_lock(current->mm);
	widen_to_tables(pm);
	mmap_write_unlock(current->mm);
	KUNIT_EXPECT_EQ(test, pm->wide_start, start);
	KUNIT_EXPECT_EQ(test, pm->wide_end, end);
}

static int lock_and_move(struct pagetable_move *pm, bool back)
{
	struct mm_struct *mm = current->mm;
	int err;

	mmap_write_lock(mm);
	vma_start_write(pm->src);
	vma_start_write(pm->dst);
	err = back ? move_page_tables_back(pm) : move_page_tables(pm);
	mmap_write_unlock(mm);
	return err;
}

static void expect_moved(struct kunit *test, struct pagetable_move *pm)
{
	KUNIT_ASSERT_EQ(test, lock_and_move(pm, false), 0);
	KUNIT_EXPECT_EQ(test, pm->cursor, pm->end);
}

static void expect_moved_back(struct kunit *test, struct pagetable_move *pm)
{
	KUNIT_ASSERT_EQ(test, lock_and_move(pm, true), 0);
}

/* The page is at @there, in the range, and no entry is left for it at @gone. */
static void expect_page(struct kunit *test, const struct move_case *c, unsigned int i,
			struct page *page, unsigned long there, unsigned long gone)
{
	unsigned long off = PAGES(c->pages[i]);
	pte_t pte;

	KUNIT_EXPECT_PTR_EQ(test, page_at(there + off), page);
	KUNIT_EXPECT_FALSE(test, entry_at(gone + off, &pte));
	expect_stamp_of(test, there + off, SRC_AT + c->src + off);
	expect_rmap(test, page, there + off);
}

static void expect_pages(struct kunit *test, const struct move_case *c,
			 struct page **pages, unsigned long there, unsigned long gone)
{
	unsigned int i;

	for (i = 0; i < c->nr_pages; i++)
		expect_page(test, c, i, pages[i], there, gone);
}

static void expect_stats(struct kunit *test, const struct move_case *c,
			 const struct move_stats *stats)
{
	bool whole = arch_supports_page_table_move();
	unsigned long things = stats->puds + stats->pmds + stats->ptes;

	KUNIT_EXPECT_EQ(test, stats->puds, whole ? c->puds : 0);
	KUNIT_EXPECT_EQ(test, stats->pmds, whole ? c->pmds : 0);
	KUNIT_EXPECT_EQ(test, stats->huge, 0);
	KUNIT_EXPECT_EQ(test, stats->ptes, whole ? c->ptes : c->nr_pages);
	/* How many is a question of speed, but not if something has moved. */
	KUNIT_EXPECT_EQ(test, !!stats->flushes, !!things);
	KUNIT_EXPECT_LE(test, stats->flushes, things);
}

/* What a CPU remembers of the old place is of no use to it any more. */
static void expect_empty(struct kunit *test, const struct move_case *c, unsigned long start)
{
	unsigned int i;

	for (i = 0; i < c->nr_pages; i++)
		KUNIT_EXPECT_EQ(test, peek(test, start + PAGES(c->pages[i])), 0);
}

static void tables_move(struct kunit *test)
{
	const struct move_case *c = test->param_value;
	unsigned long src = SRC_AT + c->src, dst = DST_AT + c->dst;
	struct page *pages[MAX_PAGES];
	struct pagetable_move pm;

	set_up_move(test, c, &pm, pages);
	expect_widened(test, c, &pm);
	expect_moved(test, &pm);
	expect_stats(test, c, &pm.stats);
	KUNIT_EXPECT_EQ(test, pm.moved_table, pm.stats.puds || pm.stats.pmds);
	expect_pages(test, c, pages, dst, src);
	expect_neighbours(test, c);
	expect_empty(test, c, src);
	close_space(test);
}

/* The first pages of the range move, and then back. */
static void move_there_and_back(struct kunit *test, unsigned long nr)
{
	const struct move_case *c = test->param_value;
	unsigned long src = SRC_AT + c->src, dst = DST_AT + c->dst;
	struct page *pages[MAX_PAGES];
	struct pagetable_move pm;
	unsigned long table_bytes;
	unsigned int i;

	set_up_move(test, c, &pm, pages);
	pm.end = src + PAGES(nr);
	expect_moved(test, &pm);
	for (i = 0; i < c->nr_pages; i++) {
		bool moved = c->pages[i] < nr;

		expect_page(test, c, i, pages[i], moved ? dst : src, moved ? src : dst);
	}
	pm.end = src + c->len;
	table_bytes = mm_pgtables_bytes(current->mm);
	expect_moved_back(test, &pm);
	/* It must not fail, so it may not need memory. */
	KUNIT_EXPECT_LE(test, mm_pgtables_bytes(current->mm), table_bytes);
	expect_pages(test, c, pages, src, dst);
	expect_neighbours(test, c);
	expect_empty(test, c, dst);
	close_space(test);
}

static void tables_move_back(struct kunit *test)
{
	const struct move_case *c = test->param_value;

	move_there_and_back(test, c->len >> PAGE_SHIFT);
}

/* Make @addr a boundary between VMAs. */
static void cut_at(struct kunit *test, unsigned long addr)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma = vma_at(addr);
	int err = 0;

	VMA_ITERATOR(vmi, mm, addr);

	mmap_write_lock(mm);
	if (vma && vma->vm_start < addr)
		err = split_vma(&vmi, vma, addr, /* new_below = */ 1);
	mmap_write_unlock(mm);
	KUNIT_ASSERT_EQ(test, err, 0);
}

static void init_relocation(struct pagetable_move *pm, unsigned long src,
			    unsigned long len, unsigned long dst)
{
	*pm = (struct pagetable_move) {
		.src = vma_at(src),
		.dst = vma_at(src),
		.start = src,
		.end = src + len,
		.shift = dst - src,
		.new_len = len,
		.count_ptes = true,
	};
}

/* A VMA of its own that is to change its place. */
static void set_up_relocation(struct kunit *test, const struct move_case *c,
			      struct pagetable_move *pm, struct page **pages)
{
	unsigned long src = SRC_AT + c->src;

	if (c->flags & TABLE_AT_DST)
		kunit_skip(test, "no table is left where nothing is mapped");
	set_up_source(test, c, pages);
	cut_at(test, src);
	cut_at(test, src + c->len);
	set_up_neighbours(test, c);
	init_relocation(pm, src, c->len, DST_AT + c->dst);
	pm->new_len += page_if(c, GROWS);
	pm->ptes_only = c->flags & PTES_ONLY;
}

static void set_range(unsigned long start, unsigned long len, struct vm_area_struct *vma)
{
	MA_STATE(mas, &current->mm->mm_mt, start, start + len - 1);

	mas_store_gfp(&mas, vma, GFP_KERNEL);
}

static void clear_gap(unsigned long start, unsigned long len, bool page_tables)
{
	struct vm_area_struct *prev, *next;

	set_range(start, len, NULL);
	next = find_vma_prev(current->mm, start, &prev);
	free_left_tables(current->mm, start, len,
			 prev ? prev->vm_end : FIRST_USER_ADDRESS,
			 next ? next->vm_start : USER_PGTABLES_CEILING, page_tables);
}

/* What a call does around relocate_page_tables() */

static int begin_relocation(struct pagetable_move *pm)
{
	mmap_write_lock(current->mm);
	vma_start_write(pm->src);
	set_range(pm->start + pm->shift, pm->new_len, pm->src);
	return relocate_page_tables(pm);
}

static void end_relocation(struct pagetable_move *pm, int err)
{
	unsigned long len = pm->end - pm->start;
	struct mm_struct *mm = current->mm;

	if (err) {
		clear_gap(pm->start + pm->shift, pm->new_len, true);
	} else {
		clear_gap(pm->start, len, pm->left_tables);
		vm_stat_account(mm, pm->src->vm_flags, (pm->new_len - len) >> PAGE_SHIFT);
	}
	mmap_write_unlock(mm);
}

/* To the new place, and then back or not. */
static void relocate(struct kunit *test, bool back)
{
	const struct move_case *c = test->param_value;
	unsigned long src = SRC_AT + c->src, dst = DST_AT + c->dst;
	unsigned long there = back ? src : dst, gone = back ? dst : src;
	bool some = c->puds || c->pmds || c->ptes;
	struct page *pages[MAX_PAGES];
	struct pagetable_move pm;
	unsigned long tables;
	int err;

	set_up_relocation(test, c, &pm, pages);
	if (!can_relocate_page_tables(&pm))
		kunit_skip(test, "takes more than one window");
	tables = mm_pgtables_bytes(current->mm);
	err = begin_relocation(&pm);
	if (!err && back)
		err = relocate_page_tables_back(&pm);
	end_relocation(&pm, back ? -EAGAIN : err);
	KUNIT_ASSERT_EQ(test, err, 0);
	KUNIT_EXPECT_EQ(test, pm.stats.relocated, 1);
	KUNIT_EXPECT_LE(test, pm.stats.flushes, some + !!c->ptes);
	expect_stats(test, c, &pm.stats);
	KUNIT_EXPECT_EQ(test, pm.moved_table, pm.stats.puds || pm.stats.pmds);
	if (back)
		KUNIT_EXPECT_EQ(test, mm_pgtables_bytes(current->mm), tables);
	KUNIT_EXPECT_NULL(test, vma_at(gone));
	KUNIT_EXPECT_PTR_EQ(test, vma_at(there), pm.src);
	KUNIT_EXPECT_EQ(test, pm.src->vm_start, there);
	KUNIT_EXPECT_EQ(test, pm.src->vm_end, there + pm.new_len);
	/* Without pages it has the offset of its address, else it keeps its own. */
	KUNIT_EXPECT_EQ(test, pm.src->vm_pgoff, (pm.src->anon_vma ? src : there) >> PAGE_SHIFT);
	expect_pages(test, c, pages, there, gone);
	expect_neighbours(test, c);
	if (c->flags & GROWS) {
		stamp(test, dst + c->len);
		expect_rmap(test, page_at(dst + c->len), dst + c->len);
	}
	close_space(test);
}

static void tables_relocate(struct kunit *test)
{
	relocate(test, false);
}

/* One of several could not be relocated: those that were go back. */
static void tables_relocate_back(struct kunit *test)
{
	const struct move_case *c = test->param_value;

	if (c->flags & GROWS)
		kunit_skip(test, "who grows moves alone");
	relocate(test, true);
}

/*
 * A table of the VMA's own that stays empty at the old place is freed, also where the
 * table above it is somebody else's as well: close_space() would miss it.
 */
static void tables_that_stay_are_freed(struct kunit *test)
{
	const struct move_case c = { .dst = PAGES(1), .len = 2 * PMD_SIZE, .nr_pages = 1 };
	struct page *pages[MAX_PAGES];
	struct pagetable_move pm;
	int err;

	set_up_relocation(test, &c, &pm, pages);
	map_at(test, SRC_AT + ROOM - PAGES(1), PAGES(1), RW);
	stamp(test, SRC_AT + ROOM - PAGES(1));
	err = begin_relocation(&pm);
	end_relocation(&pm, err);
	KUNIT_ASSERT_EQ(test, err, 0);
	expect_pages(test, &c, pages, DST_AT + PAGES(1), SRC_AT);
	close_space(test);
}

/* What has no page, nor any table, needs none to go back. */
static void nothing_is_relocated_back(struct kunit *test)
{
	const unsigned long src = SRC_AT + P4D_SIZE, dst = DST_AT, len = PAGES(2);
	struct pagetable_move pm;
	unsigned long tables;
	int err;

	if (CONFIG_PGTABLE_LEVELS < 4)
		kunit_skip(test, "needs tables of four levels");
	map_at(test, src, len, RW);
	map_at(test, dst + PAGES(8), PAGES(1), RW);
	stamp(test, dst + PAGES(8));
	init_relocation(&pm, src, len, dst);
	tables = mm_pgtables_bytes(current->mm);
	err = begin_relocation(&pm);
	KUNIT_EXPECT_EQ(test, err, 0);
	if (!err)
		err = relocate_page_tables_back(&pm);
	KUNIT_EXPECT_EQ(test, mm_pgtables_bytes(current->mm), tables);
	end_relocation(&pm, -EAGAIN);
	KUNIT_ASSERT_EQ(test, err, 0);
	KUNIT_EXPECT_NULL(test, vma_at(dst));
	KUNIT_EXPECT_PTR_EQ(test, vma_at(src), pm.src);
	KUNIT_EXPECT_EQ(test, pm.src->vm_start, src);
	close_space(test);
}

struct shift_case {
	const char *name;
	unsigned long src;	/* from SRC_AT, in pages, as all of these */
	unsigned long len;
	long shift;
	unsigned long neighbour;
	unsigned int nr_pages;
	unsigned long pages[4];	/* from the start of the range */
};

#define TABLE	(PMD_SIZE >> PAGE_SHIFT)

static const struct shift_case shift_cases[] = {
	{ "up by a page", 3, 4, 1, 20, 4, { 0, 1, 2, 3 } },
	{ "up by almost all of it", 3, 4, 3, 20, 4, { 0, 1, 2, 3 } },
	{ "down by a page", 3, 4, -1, 20, 4, { 0, 1, 2, 3 } },
	{ "down by almost all of it", 3, 4, -3, 20, 4, { 0, 1, 2, 3 } },
	{ "with its table alone", 3, 100, 50, 0, 3, { 0, 7, 99 } },
	{ "up across a table's end", TABLE - 2, 4, 3, TABLE + 9, 4, { 0, 1, 2, 3 } },
	{ "down across a table's end", TABLE - 2, 4, -3, TABLE + 9, 4, { 0, 1, 2, 3 } },
	{ "up into a table to be made", TABLE - 4, 4, 2, 0, 4, { 0, 1, 2, 3 } },
	{ "down into a table to be made", TABLE, 4, -2, 0, 4, { 0, 1, 2, 3 } },
	{ "up, no table to be made", TABLE - 4, 4, 2, 0, 2, { 0, 1 } },
	{ "all of a table", TABLE, TABLE, 1, 0, 3, { 0, TABLE / 2, TABLE - 1 } },
	{ "down, all of a table", TABLE + 7, TABLE, -9, 0, 4, { 0, 1, 2, TABLE - 1 } },
	{ "nothing at all", 3, 4, 1, 20, 0, {} },
};

KUNIT_ARRAY_PARAM_DESC(shift, shift_cases, name);

/* The old place is linked again, or what is beside it is unlinked. */
static void leave_at(struct pagetable_move *pm, bool new_place)
{
	unsigned long shift = new_place ? pm->shift : -pm->shift;
	unsigned long start = pm->start + (new_place ? pm->shift : 0);
	unsigned long len = pm->end - pm->start;

	set_range(start, len, pm->src);
	if ((long)shift > 0)
		clear_gap(start - shift, shift, true);
	else
		clear_gap(start + len, -shift, true);
}

static void expect_shifted(struct kunit *test, const struct shift_case *c,
			   struct page **pages, unsigned long start)
{
	unsigned int i;

	KUNIT_EXPECT_EQ(test, vma_at(start)->vm_start, start);
	KUNIT_EXPECT_EQ(test, vma_at(start)->vm_end, start + PAGES(c->len));
	for (i = 0; i < c->nr_pages; i++) {
		KUNIT_EXPECT_PTR_EQ(test, page_at(start + PAGES(c->pages[i])), pages[i]);
		expect_rmap(test, pages[i], start + PAGES(c->pages[i]));
	}
}

/* Relocated to where a part of it is: all leave before the first one arrives. */
static void entries_are_set_aside(struct kunit *test)
{
	const struct shift_case *c = test->param_value;
	unsigned long src = SRC_AT + PMD_SIZE + PAGES(c->src), dst = src + c->shift * PAGE_SIZE;
	unsigned long neighbour = SRC_AT + PMD_SIZE + PAGES(c->neighbour), tables;
	struct page *pages[ARRAY_SIZE(c->pages)];
	struct pagetable_move pm;
	unsigned int i;
	int err, back;

	map_at(test, src, PAGES(c->len), RW);
	for (i = 0; i < c->nr_pages; i++) {
		stamp(test, src + PAGES(c->pages[i]));
		pages[i] = page_at(src + PAGES(c->pages[i]));
	}
	if (c->neighbour) {
		map_at(test, neighbour, PAGES(1), RW);
		stamp(test, neighbour);
	}
	init_relocation(&pm, src, PAGES(c->len), dst);
	pm.aside = kunit_kmalloc_array(test, MAX_ASIDE, sizeof(*pm.aside), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, pm.aside);
	KUNIT_ASSERT_TRUE(test, can_relocate_page_tables(&pm));

	for (back = 1; back >= 0; back--) {
		tables = mm_pgtables_bytes(current->mm);
		err = begin_relocation(&pm);
		if (!err && back)
			err = relocate_page_tables_back(&pm);
		if (!err)
			leave_at(&pm, !back);
		mmap_write_unlock(current->mm);
		KUNIT_ASSERT_EQ(test, err, 0);
		expect_shifted(test, c, pages, back ? src : dst);
		if (back)
			KUNIT_EXPECT_EQ(test, mm_pgtables_bytes(current->mm), tables);
		KUNIT_EXPECT_EQ(test, pm.stats.ptes, (2 - back) * c->nr_pages);
		KUNIT_EXPECT_EQ(test, pm.stats.flushes, (2 - back) * !!c->nr_pages);
		KUNIT_EXPECT_EQ(test, pm.stats.pmds, 0);
	}
	close_space(test);
}

struct fit_case {
	unsigned long src, dst, len;	/* from SRC_AT, from DST_AT, in bytes */
	bool fits;
};

/* One window: a table of PMDs at either place, and a number of page tables. */
static void one_window_can_be_relocated(struct kunit *test)
{
	const unsigned long room = WINDOW_TABLES * PMD_SIZE;
	const struct fit_case cases[] = {
		{ 0, 0, PAGES(1), true },
		{ 0, PAGES(1), room, true },
		{ PAGES(1), 0, room, false },
		{ 0, PAGES(1), room + PAGES(1), false },
		{ PUD_SIZE - PAGES(1), 0, PAGES(1), true },
		{ PUD_SIZE - PAGES(1), 0, PAGES(2), false },
		{ 0, PUD_SIZE - PAGES(1), PAGES(1), true },
		{ 0, PUD_SIZE - PAGES(1), PAGES(2), false },
		{ 0, 0, PUD_SIZE, true },
		{ PAGES(1), PAGES(1), PUD_SIZE, false },
	};
	unsigned int i;

	if (!IS_ENABLED(CONFIG_64BIT))
		kunit_skip(test, "needs CONFIG_64BIT");
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		const struct fit_case *c = &cases[i];
		const struct pagetable_move pm = {
			.start = SRC_AT + c->src,
			.end = SRC_AT + c->src + c->len,
			.shift = DST_AT + c->dst - SRC_AT - c->src,
			.new_len = c->len,
		};

		/* Where tables cannot move whole these are as many as of others. */
		if (c->len == PUD_SIZE && !can_move_pte_tables(&pm))
			continue;
		KUNIT_EXPECT_EQ_MSG(test, can_relocate_page_tables(&pm), c->fits, "case %u", i);
	}
}

/* A page in the middle of the range, behind the first that is there. */
static unsigned long middle_page(const struct move_case *c)
{
	unsigned long page = min(c->len / 2, PMD_SIZE) >> PAGE_SHIFT;

	if (c->nr_pages && (page <= c->pages[0] || page > c->pages[c->nr_pages - 1]))
		page = c->pages[0] + 1;
	return page;
}

/* A move that got no further than to the middle of the range */
static void part_moves_back(struct kunit *test)
{
	move_there_and_back(test, middle_page(test->param_value));
}

/*
 * Sparse mappings at random, some of them between neighbours or with tables left
 * at the new place, move up to a random page and back. That needs no table that
 * is not there: else page tables would take more memory than before.
 */
#define NR_LAYOUTS	150
#define LAYOUT_TABLES	7
#define LAYOUT_PAGES	(LAYOUT_TABLES * TABLE_PAGES)

struct layout {
	struct rnd_state rnd;
	unsigned long src;
	unsigned long dst;
	unsigned long nr_pages;
	unsigned long stop;		/* pages that move */
	struct page **pages;
	unsigned long beside;		/* address of a neighbour's page */
	struct page *beside_page;	/* NULL if it was not touched */
};

static unsigned long draw(struct layout *l, unsigned long below)
{
	return prandom_u32_state(&l->rnd) % below;
}

static void touch_pages(struct kunit *test, struct layout *l)
{
	/* In some tables only, or only in a prefix. */
	unsigned long last = draw(l, 3) ? l->nr_pages : draw(l, l->nr_pages) + 1;
	unsigned long page, table;

	/* What has no pages merges with any neighbour. */
	if (!draw(l, 4))
		return;
	for (table = 0; table < LAYOUT_TABLES; table++) {
		unsigned int left = draw(l, 2) * (1 + draw(l, 3));

		while (left--) {
			page = table * TABLE_PAGES + draw(l, TABLE_PAGES);
			if (page >= last || l->pages[page])
				continue;
			stamp(test, l->src + PAGES(page));
			l->pages[page] = page_at(l->src + PAGES(page));
		}
	}
}

/* A mapping right above the new place, which the new one merges with or not. */
static void add_neighbour(struct kunit *test, struct layout *l)
{
	unsigned long above = l->dst + PAGES(l->nr_pages);

	l->beside = above + PAGES(draw(l, TABLE_PAGES / 4));
	l->beside_page = NULL;
	if (draw(l, 2))
		return;
	map_at(test, above, PAGES(TABLE_PAGES), draw(l, 2) ? RW : RWX);
	if (draw(l, 2)) {
		stamp(test, l->beside);
		l->beside_page = page_at(l->beside);
	}
}

struct layout_case {
	const char *name;
	bool congruent;
	bool ptes_only;
	bool across;		/* from and to several tables of PMDs */
};

static const struct layout_case layout_cases[] = {
	{ "entries move" },
	{ "entries move across tables of PMDs", .across = true },
	{ "tables move", .congruent = true },
	{ "tables have to stay", .congruent = true, .ptes_only = true },
};

KUNIT_ARRAY_PARAM_DESC(layout, layout_cases, name);

static void draw_layout(struct kunit *test, struct layout *l, const struct layout_case *c)
{
	l->src = SRC_AT + PAGES(draw(l, TABLE_PAGES));
	l->dst = DST_AT + PAGES(draw(l, TABLE_PAGES));
	if (c->congruent)
		l->dst = DST_AT + (l->src & ~PMD_MASK);
	if (c->across) {
		l->src -= draw(l, LAYOUT_TABLES) * PMD_SIZE;
		l->dst -= draw(l, LAYOUT_TABLES) * PMD_SIZE;
	}
	l->nr_pages = 1 + draw(l, LAYOUT_PAGES);
	l->stop = draw(l, 2) ? l->nr_pages : 1 + draw(l, l->nr_pages);
	memset(l->pages, 0, LAYOUT_PAGES * sizeof(*l->pages));

	map_at(test, l->src, PAGES(l->nr_pages), RW);
	touch_pages(test, l);
	add_neighbour(test, l);
	/* So that there is a table of PMDs at the old place, whatever was touched. */
	map_at(test, SRC_AT + ROOM - PAGES(1), PAGES(1), RW);
	stamp(test, SRC_AT + ROOM - PAGES(1));
	if (c->across) {
		map_at(test, SRC_AT - ROOM / 2, PAGES(1), RW);
		stamp(test, SRC_AT - ROOM / 2);
	}
}

static bool has_no_pte(unsigned long start)
{
	unsigned long page;
	pte_t pte;

	for (page = 0; page < TABLE_PAGES; page++) {
		if (entry_at(start + PAGES(page), &pte))
			return false;
	}
	return true;
}

static bool is_empty_pmd_table(pmd_t *table)
{
	unsigned int i;

	for (i = 0; i < PTRS_PER_PMD; i++) {
		if (!pmd_none(table[i]))
			return false;
	}
	return true;
}

/* Page tables at the place that have no entry, of whomever. */
static unsigned long nr_empty_tables(unsigned long start, unsigned long len)
{
	unsigned long addr, nr = 0;
	pmd_t *pmd;

	for (addr = start & PMD_MASK; addr < start + len; addr += PMD_SIZE) {
		pmd = mm_find_pmd(current->mm, addr);
		nr += pmd && !pmd_none(*pmd) && has_no_pte(addr);
	}
	return nr;
}

static unsigned long nr_empty_pmd_tables(unsigned long start, unsigned long len)
{
	unsigned long addr, nr = 0;
	pud_t *pud;

	for (addr = start & PUD_MASK; addr < start + len; addr += PUD_SIZE) {
		pud = find_pud(current->mm, addr);
		nr += pud && !pud_none(*pud) && is_empty_pmd_table(pmd_offset(pud, 0));
	}
	return nr;
}

static unsigned long nr_misplaced(struct layout *l, unsigned long start,
				  unsigned long stop, unsigned long from)
{
	unsigned long page, nr = 0;

	for (page = 0; page < stop; page++)
		nr += page_at(start + PAGES(page)) != l->pages[page];
	for (; page < l->nr_pages; page++)
		nr += page_at(from + PAGES(page)) != l->pages[page];
	return nr;
}

static void layout_moves_back(struct kunit *test, struct layout *l, bool ptes_only)
{
	struct pagetable_move pm;
	unsigned long tables;
	bool left = !draw(l, 3);

	copy_mapping(test, &pm, l->src, PAGES(l->nr_pages), l->dst, PAGES(l->nr_pages));
	pm.ptes_only = ptes_only;
	pm.end = l->src + PAGES(l->stop);
	if (left)
		leave_table(test, l->dst + PAGES(draw(l, l->nr_pages)));
	expect_moved(test, &pm);
	KUNIT_EXPECT_EQ(test, nr_misplaced(l, l->dst, l->stop, l->src), 0);
	if (!left)
		KUNIT_EXPECT_EQ(test, nr_empty_tables(l->dst, PAGES(l->nr_pages)), 0);
	/* Those that can move whole are not looked into before there is one above. */
	if (!left && !can_move_pte_tables(&pm))
		KUNIT_EXPECT_EQ(test, nr_empty_pmd_tables(l->dst, PAGES(l->nr_pages)), 0);

	pm.end = l->src + PAGES(l->nr_pages);
	tables = mm_pgtables_bytes(current->mm);
	expect_moved_back(test, &pm);
	KUNIT_EXPECT_LE(test, mm_pgtables_bytes(current->mm), tables);
	KUNIT_EXPECT_EQ(test, nr_misplaced(l, l->src, l->nr_pages, 0), 0);
	KUNIT_EXPECT_PTR_EQ(test, page_at(l->beside), l->beside_page);
}

/* All of it, and then back or not. Nobody has left a table at the new place. */
static void layout_relocates(struct kunit *test, struct layout *l, bool ptes_only)
{
	unsigned long len = PAGES(l->nr_pages), tables;
	struct pagetable_move pm;
	bool back = draw(l, 2);
	int err;

	init_relocation(&pm, l->src, len, l->dst);
	pm.ptes_only = ptes_only;
	if (!can_relocate_page_tables(&pm))
		return;
	tables = mm_pgtables_bytes(current->mm);
	err = begin_relocation(&pm);
	KUNIT_EXPECT_EQ(test, nr_misplaced(l, l->dst, l->nr_pages, 0), 0);
	KUNIT_EXPECT_EQ(test, nr_empty_tables(l->dst, len), 0);
	if (!can_move_pte_tables(&pm))
		KUNIT_EXPECT_EQ(test, nr_empty_pmd_tables(l->dst, len), 0);
	if (!err && back)
		err = relocate_page_tables_back(&pm);
	end_relocation(&pm, err || back ? -EAGAIN : 0);
	KUNIT_ASSERT_EQ(test, err, 0);
	KUNIT_EXPECT_EQ(test, nr_misplaced(l, back ? l->src : l->dst, l->nr_pages, 0), 0);
	/* What reaches into a neighbour's range stays for it. */
	if (back && !vma_at(l->beside))
		KUNIT_EXPECT_EQ(test, mm_pgtables_bytes(current->mm), tables);
	KUNIT_EXPECT_PTR_EQ(test, page_at(l->beside), l->beside_page);
}

static void for_random_layouts(struct kunit *test,
			       void (*check)(struct kunit *, struct layout *, bool))
{
	const struct layout_case *c = test->param_value;
	struct layout l = {
		.pages = kunit_kcalloc(test, LAYOUT_PAGES, sizeof(*l.pages), GFP_KERNEL),
	};
	unsigned int i;

	KUNIT_ASSERT_NOT_NULL(test, l.pages);
	prandom_seed_state(&l.rnd, 1);
	for (i = 0; i < NR_LAYOUTS; i++) {
		draw_layout(test, &l, c);
		check(test, &l, c->ptes_only);
		KUNIT_ASSERT_EQ(test, vm_munmap(0, TASK_SIZE), 0);
		cond_resched();
	}
	close_space(test);
}

static void random_layouts_move_back(struct kunit *test)
{
	for_random_layouts(test, layout_moves_back);
}

static void random_layouts_relocate(struct kunit *test)
{
	for_random_layouts(test, layout_relocates);
}

/*
 * The table of the first page moves to no place of its own, as the pages go to the
 * one below. What would go there from the next table is in another table of PMDs,
 * and the table at its index in this one is somebody else's.
 */
static void next_table_of_pmds_is_another(struct kunit *test)
{
	const unsigned long src = SRC_AT + ROOM - PMD_SIZE, len = 2 * PMD_SIZE;
	const unsigned long dst = DST_AT + PAGES(1);
	struct pagetable_move pm;

	map_at(test, SRC_AT, PMD_SIZE, RW);
	stamp(test, SRC_AT);
	map_at(test, src, len, RW);
	stamp(test, src);
	copy_mapping(test, &pm, src, len, dst, len);
	expect_moved(test, &pm);
	KUNIT_EXPECT_NOT_NULL(test, page_at(dst));
	KUNIT_EXPECT_EQ(test, nr_empty_tables(dst, len), 0);
	close_space(test);
}

/* No table of any level is made for tables without entries. */
static void no_table_for_nothing(struct kunit *test)
{
	const unsigned long src = SRC_AT, len = PMD_SIZE;
	const unsigned long dst = DST_AT + PAGES(1);
	struct pagetable_move pm;
	unsigned long tables;

	map_at(test, src, len, RW);
	leave_table(test, src);
	copy_mapping(test, &pm, src, len, dst, len);
	tables = mm_pgtables_bytes(current->mm);
	expect_moved(test, &pm);
	KUNIT_EXPECT_EQ(test, mm_pgtables_bytes(current->mm), tables);
	close_space(test);
}

/* It moves whole although its first entry is empty, and no upper table is there. */
static void table_of_pmds_moves_far(struct kunit *test)
{
	const unsigned long last = PUD_SIZE - PAGES(1), dst = SRC_AT + P4D_SIZE;
	struct pagetable_move pm;

	if (!IS_ENABLED(CONFIG_64BIT) || !IS_ENABLED(CONFIG_HAVE_MOVE_PUD))
		kunit_skip(test, "needs CONFIG_HAVE_MOVE_PUD");
	map_at(test, SRC_AT, PUD_SIZE, RW);
	stamp(test, SRC_AT + last);
	copy_mapping(test, &pm, SRC_AT, PUD_SIZE, dst, PUD_SIZE);
	expect_moved(test, &pm);
	KUNIT_EXPECT_EQ(test, pm.stats.puds, 1);
	expect_stamp_of(test, dst + last, SRC_AT + last);
	close_space(test);
}

/* Empty entries of the upper levels are passed in one step. */
static void holes_are_passed_at_once(struct kunit *test)
{
	struct mm_struct *mm = current->mm;
	struct pagetable_move pm = {
		.start = PAGES(3),
		.wide_end = TASK_SIZE - PAGES(1),
		.cursor = PAGES(3),
	};
	unsigned int steps = 0;

	if (CONFIG_PGTABLE_LEVELS < 4)
		kunit_skip(test, "needs tables of four levels");
	map_at(test, SRC_AT, PAGES(1), RW);
	stamp(test, SRC_AT);
	pm.src = vma_at(SRC_AT);
	KUNIT_ASSERT_NOT_NULL(test, pm.src);
	while (pm.cursor < pm.wide_end && steps < 2 * PTRS_PER_PUD + 2 * PTRS_PER_PGD) {
		if (find_used_pud(mm, pm.cursor))
			pm.cursor += get_extent(&pm, PUD_SIZE);
		else
			skip_hole(&pm);
		steps++;
	}
	KUNIT_EXPECT_EQ(test, pm.cursor, pm.wide_end);
	KUNIT_EXPECT_GT(test, steps, 1);
	close_space(test);
}

/* Entries of other kinds than of a page just mapped */

enum entry_kind {
	CLEAN,
	NO_ACCESS,
	UFFD_WP,
	SWAPPED,
	SWAPPED_UFFD_WP,
	MIGRATING,
	POISONED,
	UFFD_WP_MARKER,
};

/* How they move: in their table, or by themselves in two ways. */
enum entry_way {
	IN_TABLE,
	OWN_TABLE,		/* out of a table with nothing else in it */
	SHARED_TABLE,		/* out of one that stays in use */
};

struct entry_case {
	const char *name;
	enum entry_kind kind;
};

static const struct entry_case entry_cases[] = {
	{ "clean", CLEAN },
	{ "may not be accessed", NO_ACCESS },
	{ "write-protected", UFFD_WP },
	{ "swapped out", SWAPPED },
	{ "swapped out and write-protected", SWAPPED_UFFD_WP },
	{ "in migration", MIGRATING },
	{ "poisoned", POISONED },
	{ "write-protected hole", UFFD_WP_MARKER },
};

KUNIT_ARRAY_PARAM_DESC(entry, entry_cases, name);

static pte_t make_entry(enum entry_kind kind, pte_t page)
{
	swp_entry_t swap = swp_entry(0, 0x123);

	switch (kind) {
	case CLEAN:
		return pte_clear_soft_dirty(page);
	case NO_ACCESS:
		return pte_clear_soft_dirty(pte_modify(page, PAGE_NONE));
	case UFFD_WP:
		return pte_mkuffd_wp(page);
	case SWAPPED:
		return swp_entry_to_pte(swap);
	case SWAPPED_UFFD_WP:
		return pte_swp_mkuffd_wp(swp_entry_to_pte(swap));
	case MIGRATING:
		return swp_entry_to_pte(make_readable_migration_entry(pte_pfn(page)));
	case POISONED:
		return make_pte_marker(PTE_MARKER_POISONED);
	case UFFD_WP_MARKER:
		return make_pte_marker(PTE_MARKER_UFFD_WP);
	}
	return page;
}

static void skip_impossible_entry(struct kunit *test, enum entry_kind kind, enum entry_way way)
{
	if (way == IN_TABLE && !arch_supports_page_table_move())
		kunit_skip(test, "needs CONFIG_HAVE_MOVE_PMD");
	if (kind == MIGRATING && !IS_ENABLED(CONFIG_MIGRATION))
		kunit_skip(test, "needs CONFIG_MIGRATION");
	if ((kind == UFFD_WP || kind == SWAPPED_UFFD_WP) &&
	    !IS_ENABLED(CONFIG_HAVE_ARCH_USERFAULTFD_WP))
		kunit_skip(test, "needs CONFIG_HAVE_ARCH_USERFAULTFD_WP");
}

/* Put @entry where there is one, and return that. */
static pte_t replace_entry(struct kunit *test, unsigned long addr, pte_t entry)
{
	struct mm_struct *mm = current->mm;
	pmd_t *pmd = mm_find_pmd(mm, addr);
	spinlock_t *ptl = NULL;
	pte_t *pte, old;

	pte = pmd ? pte_offset_map_lock(mm, pmd, addr, &ptl) : NULL;
	KUNIT_ASSERT_NOT_NULL(test, pte);
	old = ptep_get_and_clear(mm, addr, pte);
	set_pte_at(mm, addr, pte, entry);
	pte_unmap_unlock(pte, ptl);
	return old;
}

static void expect_entry(struct kunit *test, unsigned long addr, pte_t want)
{
	pte_t entry;

	KUNIT_EXPECT_TRUE(test, entry_at(addr, &entry));
	KUNIT_EXPECT_TRUE(test, pte_same(entry, want));
}

/*
 * Every bit of the entry arrives, and if it moves by itself, it is soft-dirty
 * then. The page is set aside and put back, so that all ends well for it.
 */
static void expect_kind_kept(struct kunit *test, enum entry_way way)
{
	const struct entry_case *c = test->param_value;
	unsigned long src = SRC_AT + PAGES(5), dst = DST_AT + PAGES(5);
	unsigned long len = way == SHARED_TABLE ? PMD_SIZE / 2 : PMD_SIZE;
	struct pagetable_move pm;
	pte_t page, made, moved;

	skip_impossible_entry(test, c->kind, way);
	map_at(test, SRC_AT, PMD_SIZE, RW);
	stamp(test, src);
	copy_mapping(test, &pm, SRC_AT, len, DST_AT, len);
	/* In a VMA that is marked as a whole, entries may go without. */
	set_vma_flags(test, DST_AT, 0, VM_SOFTDIRTY);
	pm.ptes_only = way != IN_TABLE;

	KUNIT_ASSERT_TRUE(test, entry_at(src, &page));
	lock_page(pte_page(page));
	made = make_entry(c->kind, page);
	moved = way == IN_TABLE ? made : move_soft_dirty_pte(made);
	page = replace_entry(test, src, made);

	expect_moved(test, &pm);
	KUNIT_EXPECT_EQ(test, pm.stats.pmds, way == IN_TABLE);
	KUNIT_EXPECT_EQ(test, pm.stats.ptes, way != IN_TABLE);
	if (can_detach_tables(&pm))
		KUNIT_EXPECT_EQ(test, is_own_table(&pm, src), way == OWN_TABLE);
	expect_entry(test, dst, moved);
	expect_moved_back(test, &pm);
	expect_entry(test, src, moved);

	replace_entry(test, src, page);
	unlock_page(pte_page(page));
	expect_stamp(test, src);
	close_space(test);
}

static void entries_keep_their_kind_in_a_table(struct kunit *test)
{
	expect_kind_kept(test, IN_TABLE);
}

static void entries_keep_their_kind_alone(struct kunit *test)
{
	expect_kind_kept(test, OWN_TABLE);
}

static void entries_keep_their_kind_in_part(struct kunit *test)
{
	expect_kind_kept(test, SHARED_TABLE);
}

/* Huge pages */

static bool is_huge_at(unsigned long addr)
{
	pmd_t *pmd = mm_find_pmd(current->mm, addr);

	return pmd && classify_pmd(*pmd) == PMD_IS_LEAF;
}

static void map_for_huge_pages(struct kunit *test, unsigned long addr, unsigned long len)
{
	if (!IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE))
		kunit_skip(test, "needs CONFIG_TRANSPARENT_HUGEPAGE");
	map_at(test, addr, len, RW);
	set_vma_flags(test, addr, VM_HUGEPAGE, VM_NOHUGEPAGE);
}

/* Of huge pages, each with a stamp at its start; or the test is skipped. */
static void map_huge(struct kunit *test, unsigned long addr, unsigned long len)
{
	unsigned long end = addr + len;

	map_for_huge_pages(test, addr, len);
	for (; addr < end; addr += PMD_SIZE) {
		stamp(test, addr);
		if (!is_huge_at(addr))
			kunit_skip(test, "no huge pages to be had");
	}
}

/* How many entries does the hardware take as one, from this one on? */
static unsigned int batch_at(unsigned long addr)
{
	struct mm_struct *mm = current->mm;
	pmd_t *pmd = mm_find_pmd(mm, addr);
	unsigned int batch = 0;
	spinlock_t *ptl = NULL;
	pte_t *pte;

	pte = pmd ? pte_offset_map_lock(mm, pmd, addr, &ptl) : NULL;
	if (pte) {
		batch = pte_batch_hint(pte, ptep_get(pte));
		pte_unmap_unlock(pte, ptl);
	}
	return batch;
}

/* Entries that are one for the hardware (arm64) are so at the new place, too. */
static void contiguous_entries_move(struct kunit *test)
{
	const unsigned long half = PMD_SIZE / 2;
	struct pagetable_move pm;
	unsigned int batch;

	map_huge(test, SRC_AT, PMD_SIZE);
	copy_mapping(test, &pm, SRC_AT, half, DST_AT, half);
	expect_moved(test, &pm);
	KUNIT_EXPECT_EQ(test, pm.stats.ptes, TABLE_PAGES / 2);
	/* What stays is as the split of the huge page has left it. */
	batch = batch_at(SRC_AT + half);
	if (IS_ENABLED(CONFIG_ARM64_CONTPTE))
		KUNIT_EXPECT_GT(test, batch, 1);
	KUNIT_EXPECT_EQ(test, batch_at(DST_AT), batch);
	KUNIT_EXPECT_EQ(test, batch_at(DST_AT + half - PAGES(batch)), batch);

	expect_moved_back(test, &pm);
	KUNIT_EXPECT_EQ(test, batch_at(SRC_AT), batch);
	expect_stamp(test, SRC_AT);
	close_space(test);
}

#ifdef CONFIG_ARM64_CONTPTE
/* The state of a block is that of any of its entries: leave it in one of them alone. */
static void age_all_but_one(unsigned long addr, unsigned int nr)
{
	struct mm_struct *mm = current->mm;
	spinlock_t *ptl = NULL;
	pte_t *pte = pte_offset_map_lock(mm, mm_find_pmd(mm, addr), addr, &ptl);
	unsigned int i;

	for (i = 0; i < nr; i++) {
		if (i != nr / 2)
			WRITE_ONCE(pte[i], pte_mkold(pte_mkclean(__ptep_get(pte + i))));
	}
	pte_unmap_unlock(pte, ptl);
	flush_tlb_mm(mm);
}

static void expect_young_and_dirty(struct kunit *test, unsigned long addr, unsigned int nr)
{
	struct mm_struct *mm = current->mm;
	spinlock_t *ptl = NULL;
	pte_t *pte = pte_offset_map_lock(mm, mm_find_pmd(mm, addr), addr, &ptl);
	unsigned int i;

	for (i = 0; i < nr; i++) {
		KUNIT_EXPECT_TRUE(test, pte_young(ptep_get(pte + i)));
		KUNIT_EXPECT_TRUE(test, pte_dirty(ptep_get(pte + i)));
	}
	pte_unmap_unlock(pte, ptl);
}

/*
 * So they are where they move out of a detached table, by @shift. Where they cannot be one
 * at the new place they come apart, and at the old place they are one again.
 */
static void expect_blocks_moved(struct kunit *test, unsigned long shift, bool stay_whole)
{
	const unsigned long last = SRC_AT + PMD_SIZE, dst = DST_AT + shift;
	const unsigned long end = dst + 2 * PMD_SIZE;
	struct mm_struct *mm = current->mm;
	struct pagetable_move pm;
	struct page *table;

	map_huge(test, SRC_AT, 2 * PMD_SIZE);
	copy_mapping(test, &pm, SRC_AT, 2 * PMD_SIZE, dst, 2 * PMD_SIZE);
	split_huge_pmd(pm.src, mm_find_pmd(mm, SRC_AT), SRC_AT);
	split_huge_pmd(pm.src, mm_find_pmd(mm, last), last);
	KUNIT_ASSERT_EQ(test, batch_at(SRC_AT), CONT_PTES);
	stamp(test, SRC_AT);
	stamp(test, last);
	age_all_but_one(SRC_AT, CONT_PTES);
	table = pmd_page(*mm_find_pmd(mm, last));

	expect_moved(test, &pm);
	/* It was detached, as it is in use at the new place. */
	KUNIT_EXPECT_PTR_EQ(test, pmd_page(*mm_find_pmd(mm, end - PAGES(1))), table);
	KUNIT_EXPECT_EQ(test, batch_at(dst), stay_whole ? CONT_PTES : 1);
	KUNIT_EXPECT_EQ(test, batch_at(end - PAGES(CONT_PTES)), stay_whole ? CONT_PTES : 1);
	expect_young_and_dirty(test, dst, CONT_PTES);

	expect_moved_back(test, &pm);
	KUNIT_EXPECT_EQ(test, batch_at(SRC_AT), CONT_PTES);
	KUNIT_EXPECT_EQ(test, batch_at(last + PMD_SIZE - PAGES(CONT_PTES)), CONT_PTES);
	expect_stamp(test, SRC_AT);
	expect_stamp(test, last);
	close_space(test);
}

static void blocks_move_as_they_are(struct kunit *test)
{
	expect_blocks_moved(test, PMD_SIZE / 2, true);
}

static void blocks_come_apart(struct kunit *test)
{
	expect_blocks_moved(test, PAGES(1), false);
}
#else
SKIPPED(blocks_move_as_they_are, "needs CONFIG_ARM64_CONTPTE")
SKIPPED(blocks_come_apart, "needs CONFIG_ARM64_CONTPTE")
#endif

static void huge_zero_page_moves(struct kunit *test)
{
	struct pagetable_move pm;

	map_for_huge_pages(test, SRC_AT, PMD_SIZE);
	KUNIT_ASSERT_EQ(test, peek(test, SRC_AT), 0);
	if (!is_huge_at(SRC_AT))
		kunit_skip(test, "no huge zero page to be had");
	copy_mapping(test, &pm, SRC_AT, PMD_SIZE, DST_AT, PMD_SIZE);
	expect_moved(test, &pm);
	KUNIT_EXPECT_EQ(test, pm.stats.huge, 1);
	KUNIT_EXPECT_TRUE(test, is_huge_at(DST_AT));
	KUNIT_EXPECT_FALSE(test, is_huge_at(SRC_AT));
	KUNIT_EXPECT_EQ(test, peek(test, DST_AT + PMD_SIZE - PAGES(1)), 0);
	close_space(test);
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
static pmd_t replace_pmd(unsigned long addr, pmd_t entry)
{
	struct mm_struct *mm = current->mm;
	pmd_t *pmd = mm_find_pmd(mm, addr);
	spinlock_t *ptl = pmd_lock(mm, pmd);
	pmd_t old = pmdp_huge_get_and_clear(mm, addr, pmd);

	set_pmd_at(mm, addr, pmd, entry);
	spin_unlock(ptl);
	return old;
}

/* The entry of a huge page in migration, not dirty, or of a device moves, too. */
static void expect_huge_entry_moves(struct kunit *test, pmd_t made, pmd_t moved)
{
	struct pagetable_move pm;
	pmd_t page;

	copy_mapping(test, &pm, SRC_AT, PMD_SIZE, DST_AT, PMD_SIZE);
	page = replace_pmd(SRC_AT, made);
	expect_moved(test, &pm);
	KUNIT_EXPECT_EQ(test, pm.stats.huge, 1);
	KUNIT_EXPECT_TRUE(test, pmd_none(*mm_find_pmd(current->mm, SRC_AT)));
	page = replace_pmd(DST_AT, page);
	KUNIT_EXPECT_TRUE(test, pmd_same(page, moved));
	expect_stamp_of(test, DST_AT, SRC_AT);
}

static void huge_entries_keep_their_kind(struct kunit *test)
{
	struct page *page;
	pmd_t pmd;

	if (!IS_ENABLED(CONFIG_ARCH_ENABLE_THP_MIGRATION))
		kunit_skip(test, "needs CONFIG_ARCH_ENABLE_THP_MIGRATION");
	map_huge(test, SRC_AT, PMD_SIZE);
	pmd = pmd_clear_soft_dirty(*mm_find_pmd(current->mm, SRC_AT));
	expect_huge_entry_moves(test, pmd, pmd_mksoft_dirty(pmd));
	KUNIT_EXPECT_EQ(test, vm_munmap(DST_AT, PMD_SIZE), 0);

#ifdef CONFIG_ARCH_HAS_PTE_DEVMAP
	/* As a device's memory would be mapped. */
	stamp(test, SRC_AT);
	KUNIT_ASSERT_TRUE(test, is_huge_at(SRC_AT));
	pmd = pmd_mkdevmap(*mm_find_pmd(current->mm, SRC_AT));
	expect_huge_entry_moves(test, pmd, pmd_mksoft_dirty(pmd));
	KUNIT_EXPECT_EQ(test, vm_munmap(DST_AT, PMD_SIZE), 0);
#endif

	stamp(test, SRC_AT);
	KUNIT_ASSERT_TRUE(test, is_huge_at(SRC_AT));
	page = page_at(SRC_AT);
	pmd = swp_entry_to_pmd(make_readable_migration_entry(page_to_pfn(page)));
	lock_page(page);
	expect_huge_entry_moves(test, pmd, pmd_swp_mksoft_dirty(pmd));
	unlock_page(page);
	close_space(test);
}

/* A run of huge pages ends where the new place is taken: that one moves in small pages. */
static void huge_run_ends_at_a_table(struct kunit *test)
{
	struct mm_struct *mm = current->mm;
	spinlock_t *old_ptl, *new_ptl;
	pmd_t *old_pmd, *new_pmd;
	struct pagetable_move pm;
	unsigned long nr;

	map_huge(test, SRC_AT, 2 * PMD_SIZE);
	copy_mapping(test, &pm, SRC_AT, 2 * PMD_SIZE, DST_AT, 2 * PMD_SIZE);
	set_vma_flags(test, DST_AT, VM_NOHUGEPAGE, VM_HUGEPAGE);
	leave_table(test, DST_AT + PMD_SIZE);

	mmap_write_lock(mm);
	old_pmd = mm_find_pmd(mm, SRC_AT);
	new_pmd = mm_find_pmd(mm, DST_AT + PMD_SIZE) - 1;
	old_ptl = pmd_lockptr(mm, old_pmd);
	new_ptl = pmd_lockptr(mm, new_pmd);
	take_rmap_locks(pm.src);
	lock_both(old_ptl, new_ptl);
	nr = move_huge_pmds(pm.src, SRC_AT, DST_AT, old_pmd, new_pmd, 2, old_ptl, new_ptl);
	unlock_both(old_ptl, new_ptl);
	flush_tlb_range(pm.src, SRC_AT, SRC_AT + 2 * PMD_SIZE);
	drop_rmap_locks(pm.src);
	mmap_write_unlock(mm);

	KUNIT_EXPECT_EQ(test, nr, 1);
	KUNIT_EXPECT_TRUE(test, is_huge_at(DST_AT));
	KUNIT_EXPECT_FALSE(test, is_huge_at(DST_AT + PMD_SIZE));
	expect_stamp_of(test, DST_AT, SRC_AT);
	expect_stamp(test, SRC_AT + PMD_SIZE);

	expect_moved(test, &pm);
	KUNIT_EXPECT_EQ(test, pm.stats.huge, 0);
	KUNIT_EXPECT_EQ(test, pm.stats.ptes, TABLE_PAGES);
	expect_stamp_of(test, DST_AT + PMD_SIZE, SRC_AT + PMD_SIZE);
	close_space(test);
}
#else
SKIPPED(huge_entries_keep_their_kind, "needs CONFIG_TRANSPARENT_HUGEPAGE")
SKIPPED(huge_run_ends_at_a_table, "needs CONFIG_TRANSPARENT_HUGEPAGE")
#endif

/* Files */

/* The file's tree of mappings knows what a relocated one has grown by. */
static void grown_file_is_found(struct kunit *test)
{
	unsigned long last = DST_AT + PAGES(2);
	struct pagetable_move pm;
	struct file *file;
	int err;

	if (!IS_ENABLED(CONFIG_SHMEM))
		kunit_skip(test, "needs CONFIG_SHMEM");
	file = shmem_file_setup("mremap_kunit", PMD_SIZE, VM_NORESERVE);
	KUNIT_ASSERT_FALSE(test, IS_ERR(file));
	map_file_at(test, file, SRC_AT, PAGES(1), RW, MAP_SHARED);
	fput(file);
	stamp(test, SRC_AT);
	init_relocation(&pm, SRC_AT, PAGES(1), DST_AT);
	pm.new_len = PAGES(3);
	err = begin_relocation(&pm);
	end_relocation(&pm, err);
	KUNIT_ASSERT_EQ(test, err, 0);
	stamp(test, last);
	expect_rmap(test, page_at(DST_AT), DST_AT);
	expect_rmap(test, page_at(last), last);
	expect_stamp_of(test, DST_AT, SRC_AT);
	close_space(test);
}

/* What maps no ordinary memory has a flush of its own for each table. */
static void device_tables_are_flushed_one_by_one(struct kunit *test)
{
	struct pagetable_move pm;

	map_at(test, SRC_AT, 3 * PMD_SIZE, RW);
	stamp(test, SRC_AT);
	stamp(test, SRC_AT + PMD_SIZE);
	stamp(test, SRC_AT + 2 * PMD_SIZE);
	copy_mapping(test, &pm, SRC_AT, 3 * PMD_SIZE, DST_AT, 3 * PMD_SIZE);
	pm.ptes_only = true;
	set_vma_flags(test, SRC_AT, VM_DONTEXPAND, 0);
	expect_moved(test, &pm);
	KUNIT_EXPECT_EQ(test, pm.stats.ptes, 3);
	KUNIT_EXPECT_EQ(test, pm.stats.flushes, 3);
	expect_stamp_of(test, DST_AT, SRC_AT);
	KUNIT_EXPECT_EQ(test, peek(test, SRC_AT), 0);
	close_space(test);
}

/* Secondary MMUs */

struct flush_case {
	const char *name;
	unsigned long shift;		/* beyond that from SRC_AT to DST_AT */
	unsigned long len;
	bool is_device;
	bool is_back;
	bool relocates;
	unsigned int flushes;
	unsigned int before_move;	/* of these */
};

static const struct flush_case flush_cases[] = {
	{ "tables", .len = 3 * PMD_SIZE, .flushes = 1 },
	{ "tables, back", .len = 3 * PMD_SIZE, .is_back = true, .flushes = 1 },
	{ "a table of tables", .len = PUD_SIZE, .flushes = 1 },
	{ "a few entries", .shift = PAGES(1), .len = PAGES(9), .flushes = 1 },
	{ "entries of detached tables", .shift = PAGES(1), .len = 3 * PMD_SIZE,
	  .flushes = 1, .before_move = 1 },
	{ "entries of detached tables, back", .shift = PAGES(1),
	  .len = 3 * PMD_SIZE, .is_back = true, .flushes = 1, .before_move = 1 },
	{ "entries in two windows", .shift = PAGES(1),
	  .len = (WINDOW_TABLES + 1) * PMD_SIZE, .flushes = 2,
	  .before_move = 1 },
	{ "a VMA with its tables", .len = 3 * PMD_SIZE, .relocates = true, .flushes = 1 },
	{ "a VMA with entries of detached tables", .shift = PAGES(1),
	  .len = 3 * PMD_SIZE, .relocates = true, .flushes = 1, .before_move = 1 },
	{ "a device", .shift = PAGES(1), .len = 3 * PMD_SIZE, .is_device = true, .flushes = 3 },
};

KUNIT_ARRAY_PARAM_DESC(flush, flush_cases, name);

#ifdef CONFIG_MMU_NOTIFIER
/* Tells where the first page was when a range was announced and when it ended. */
struct watcher {
	struct mmu_notifier notifier;
	struct mmu_notifier_range range;
	unsigned int starts;
	unsigned int ends;
	struct page *src_at_start;
	struct page *src_at_end;
	struct page *dst_at_end;
};

#define WATCHED_FROM	(SRC_AT + PAGES(5))
#define WATCHED_TO	(DST_AT + PAGES(5))

static int watch_start(struct mmu_notifier *notifier, const struct mmu_notifier_range *range)
{
	struct watcher *w = container_of(notifier, struct watcher, notifier);

	w->range = *range;
	w->starts++;
	w->src_at_start = page_at(WATCHED_FROM);
	return 0;
}

static void watch_end(struct mmu_notifier *notifier, const struct mmu_notifier_range *range)
{
	struct watcher *w = container_of(notifier, struct watcher, notifier);

	w->ends++;
	w->src_at_end = page_at(WATCHED_FROM);
	w->dst_at_end = page_at(WATCHED_TO);
}

static const struct mmu_notifier_ops watcher_ops = {
	.invalidate_range_start = watch_start,
	.invalidate_range_end = watch_end,
};

/* From before the first entry moves until the last one has, tables that move. */
static void secondary_mmus_are_told(struct kunit *test)
{
	struct watcher w = { .notifier.ops = &watcher_ops };
	unsigned long len = 2 * PMD_SIZE - PAGES(10);
	struct pagetable_move pm;
	struct page *page;

	map_at(test, WATCHED_FROM, len, RW);
	stamp(test, WATCHED_FROM);
	stamp(test, WATCHED_FROM + len - PAGE_SIZE);
	page = page_at(WATCHED_FROM);
	KUNIT_ASSERT_NOT_NULL(test, page);
	copy_mapping(test, &pm, WATCHED_FROM, len, WATCHED_TO, len);
	KUNIT_ASSERT_EQ(test, mmu_notifier_register(&w.notifier, current->mm), 0);
	KUNIT_EXPECT_EQ(test, lock_and_move(&pm, false), 0);
	mmu_notifier_unregister(&w.notifier, current->mm);

	KUNIT_EXPECT_EQ(test, w.starts, 1);
	KUNIT_EXPECT_EQ(test, w.ends, 1);
	KUNIT_EXPECT_EQ(test, w.range.start, SRC_AT);
	KUNIT_EXPECT_EQ(test, w.range.end, SRC_AT + 2 * PMD_SIZE);
	KUNIT_EXPECT_EQ(test, pm.stats.pmds, 2);
	KUNIT_EXPECT_PTR_EQ(test, w.src_at_start, page);
	KUNIT_EXPECT_NULL(test, w.src_at_end);
	KUNIT_EXPECT_PTR_EQ(test, w.dst_at_end, page);
	close_space(test);
}

/* What is locked, and what is where, at each TLB flush */
struct flush_watcher {
	struct mmu_notifier notifier;
	struct vm_area_struct *vma;	/* whose page tables are looked at */
	unsigned long moved;		/* address of an entry, at the new place */
	unsigned int nr;
	unsigned int nr_under_rmap_lock;
	unsigned int nr_under_ptl;
	unsigned int nr_before_move;
	unsigned int nr_at_new_place;	/* the VMA itself */
};

/* Without a lock: it may be held where this is called. */
static bool is_mapped(struct mm_struct *mm, unsigned long addr)
{
	pmd_t *pmd = mm_find_pmd(mm, addr);
	pte_t *pte = pmd ? pte_offset_map(pmd, addr) : NULL;
	bool mapped = pte && !pte_none(ptep_get(pte));

	if (pte)
		pte_unmap(pte);
	return mapped;
}

static bool is_table_locked(struct vm_area_struct *vma)
{
	unsigned long addr;
	pmd_t *pmd;

	for (addr = vma->vm_start; addr < vma->vm_end; addr += PMD_SIZE) {
		pmd = mm_find_pmd(vma->vm_mm, addr);
		if (pmd && classify_pmd(*pmd) == PMD_IS_TABLE &&
		    spin_is_locked(pte_lockptr(vma->vm_mm, pmd)))
			return true;
	}
	return false;
}

static void watch_flush(struct mmu_notifier *notifier, struct mm_struct *mm,
			unsigned long start, unsigned long end)
{
	struct flush_watcher *w = container_of(notifier, struct flush_watcher, notifier);

	w->nr++;
	w->nr_under_rmap_lock += rwsem_is_locked(&w->vma->anon_vma->root->rwsem);
	w->nr_under_ptl += is_table_locked(w->vma);
	w->nr_before_move += !is_mapped(mm, w->moved);
	w->nr_at_new_place += w->vma->vm_start == w->moved;
}

static const struct mmu_notifier_ops flush_watcher_ops = {
	.arch_invalidate_secondary_tlbs = watch_flush,
};

static void start_watching(struct kunit *test, struct flush_watcher *w,
			   struct vm_area_struct *vma, unsigned long moved)
{
	if (!IS_ENABLED(CONFIG_X86) || !IS_ENABLED(CONFIG_SMP))
		kunit_skip(test, "needs flushes that tell secondary MMUs");
	*w = (struct flush_watcher) {
		.notifier.ops = &flush_watcher_ops,
		.vma = vma,
		.moved = moved,
	};
	KUNIT_ASSERT_EQ(test, mmu_notifier_register(&w->notifier, current->mm), 0);
}

static void stop_watching(struct flush_watcher *w)
{
	mmu_notifier_unregister(&w->notifier, current->mm);
}

/* A VMA that is relocated is at its new place before the last flush. */
static void relocate_watched(struct kunit *test, const struct flush_case *c,
			     struct flush_watcher *w)
{
	const struct move_case m = { .dst = c->shift, .len = c->len };
	struct flush_watcher seen;
	struct pagetable_move pm;
	struct page *none[MAX_PAGES];
	unsigned long addr;
	int err;

	set_up_relocation(test, &m, &pm, none);
	for (addr = SRC_AT; addr < SRC_AT + c->len; addr += PMD_SIZE)
		stamp(test, addr);
	start_watching(test, w, pm.src, DST_AT + c->shift);
	err = begin_relocation(&pm);
	seen = *w;
	end_relocation(&pm, err);
	stop_watching(w);
	*w = seen;
	KUNIT_EXPECT_EQ(test, err, 0);
	KUNIT_EXPECT_EQ(test, w->nr_at_new_place, c->flushes - c->before_move);
}

static void move_watched(struct kunit *test, const struct flush_case *c, struct flush_watcher *w)
{
	unsigned long dst = DST_AT + c->shift, addr;
	struct pagetable_move pm;

	map_at(test, SRC_AT, c->len, RW);
	for (addr = SRC_AT; addr < SRC_AT + c->len; addr += PMD_SIZE)
		stamp(test, addr);
	copy_mapping(test, &pm, SRC_AT, c->len, dst, c->len);
	if (c->is_device) {
		pm.ptes_only = true;
		set_vma_flags(test, SRC_AT, VM_DONTEXPAND, 0);
	}
	if (c->is_back)
		expect_moved(test, &pm);
	start_watching(test, w, pm.src, c->is_back ? SRC_AT : dst);
	KUNIT_EXPECT_EQ(test, lock_and_move(&pm, c->is_back), 0);
	stop_watching(w);
}

/* How many, and no moment between the leaving of an entry and them without lock. */
static void flushes_come_in_time(struct kunit *test)
{
	const struct flush_case *c = test->param_value;
	struct flush_watcher w;

	if (c->relocates)
		relocate_watched(test, c, &w);
	else
		move_watched(test, c, &w);

	KUNIT_EXPECT_EQ(test, w.nr, c->flushes);
	KUNIT_EXPECT_EQ(test, w.nr_under_rmap_lock, c->flushes);
	KUNIT_EXPECT_EQ(test, w.nr_under_ptl, c->is_device ? c->flushes : 0);
	KUNIT_EXPECT_EQ(test, w.nr_before_move, c->before_move);
	close_space(test);
}

/* Its two places may overlap: each table is flushed before its lock is dropped. */
static void stack_is_flushed_under_its_lock(struct kunit *test)
{
	unsigned long start = SRC_AT + PMD_SIZE;
	struct vm_area_struct *vma;
	struct flush_watcher w;
	int err;

	map_at(test, SRC_AT, 4 * PMD_SIZE, RW);
	stamp(test, start + PAGES(9));
	stamp(test, start + PMD_SIZE + PAGES(9));
	vma = vma_at(SRC_AT);
	start_watching(test, &w, vma, start);
	mmap_write_lock(current->mm);
	vma_start_write(vma);
	err = move_stack_page_tables(vma, start + PAGES(9), start, 2 * PMD_SIZE);
	mmap_write_unlock(current->mm);
	stop_watching(&w);

	KUNIT_EXPECT_EQ(test, err, 0);
	KUNIT_EXPECT_EQ(test, w.nr, 2);
	KUNIT_EXPECT_EQ(test, w.nr_under_rmap_lock, 2);
	KUNIT_EXPECT_EQ(test, w.nr_under_ptl, 2);
	expect_stamp_of(test, start, start + PAGES(9));
	close_space(test);
}
#else
SKIPPED(secondary_mmus_are_told, "needs CONFIG_MMU_NOTIFIER")
SKIPPED(flushes_come_in_time, "needs CONFIG_MMU_NOTIFIER")
SKIPPED(stack_is_flushed_under_its_lock, "needs CONFIG_MMU_NOTIFIER")
#endif

/* Locks that another thread holds while a move goes on, on another processor */

struct contender {
	struct mm_struct *mm;
	struct pagetable_move *pm;
	spinlock_t *one;		/* to be taken, with @other */
	spinlock_t *other;		/* to be taken, with @one */
	bool go;
	struct completion started;
	struct completion done;
};

/* Does not take part before the other thread holds its lock. */
static void wait_for_go(struct contender *c)
{
	complete(&c->started);
	while (!READ_ONCE(c->go))
		cond_resched();
}

static int take_both_locks(void *arg)
{
	struct contender *c = arg;

	wait_for_go(c);
	lock_both(c->one, c->other);
	unlock_both(c->one, c->other);
	complete(&c->done);
	return 0;
}

static int move_elsewhere(void *arg)
{
	struct contender *c = arg;

	kthread_use_mm(c->mm);
	wait_for_go(c);
	lock_and_move(c->pm, false);
	kthread_unuse_mm(c->mm);
	complete(&c->done);
	return 0;
}

/* Start @fn on another processor, which waits there until c->go. */
static void start_contender(struct contender *c, int (*fn)(void *))
{
	unsigned int cpu = raw_smp_processor_id();
	struct task_struct *thread;

	init_completion(&c->started);
	init_completion(&c->done);
	set_cpus_allowed_ptr(current, cpumask_of(cpu));
	thread = kthread_create_on_cpu(fn, c, cpumask_any_but(cpu_online_mask, cpu),
				       "mremap_kunit/%u");
	if (IS_ERR(thread)) {
		complete(&c->done);
	} else {
		wake_up_process(thread);
		wait_for_completion(&c->started);
	}
}

/*
 * Does the other processor wait for a lock that is held here? There is no telling
 * when it has come to that, so it gets a moment for it.
 */
static bool is_kept_waiting(struct contender *c)
{
	WRITE_ONCE(c->go, true);
	mdelay(20);
	return !completion_done(&c->done);
}

static void wait_for_contender(struct contender *c)
{
	wait_for_completion(&c->done);
	set_cpus_allowed_ptr(current, cpu_possible_mask);
}

static void skip_without_contention(struct kunit *test)
{
	if (!IS_ENABLED(CONFIG_SMP) || IS_ENABLED(CONFIG_PREEMPT_RT) || num_online_cpus() < 2)
		kunit_skip(test, "needs two processors and locks that spin");
}

static void locks_are_taken_by_address(struct kunit *test)
{
	struct {
		spinlock_t low;		/* at the lower address */
		spinlock_t high;	/* at the higher one */
	} locks;
	struct contender c = { .one = &locks.high, .other = &locks.low };
	bool waits, holds_high;

	skip_without_contention(test);
	spin_lock_init(&locks.low);
	spin_lock_init(&locks.high);
	start_contender(&c, take_both_locks);
	spin_lock(&locks.low);
	waits = is_kept_waiting(&c);
	holds_high = spin_is_locked(&locks.high);
	spin_unlock(&locks.low);
	wait_for_contender(&c);
	KUNIT_EXPECT_TRUE(test, waits);
	KUNIT_EXPECT_FALSE(test, holds_high);
}

/* Who holds a table's lock can rely on its staying in the tree. */
static void locked_table_is_not_detached(struct kunit *test)
{
	struct pagetable_move pm;
	struct contender c = { .mm = current->mm, .pm = &pm };
	bool waits, is_there;
	spinlock_t *ptl;		/* of the table at @pmd */
	pmd_t *pmd;

	skip_without_contention(test);
	map_at(test, SRC_AT, 2 * PMD_SIZE, RW);
	stamp(test, SRC_AT);
	copy_mapping(test, &pm, SRC_AT, 2 * PMD_SIZE, DST_AT + PAGES(1), 2 * PMD_SIZE);
	pmd = mm_find_pmd(current->mm, SRC_AT);
	KUNIT_ASSERT_NOT_NULL(test, pmd);
	ptl = pte_lockptr(current->mm, pmd);
	start_contender(&c, move_elsewhere);
	spin_lock(ptl);
	waits = is_kept_waiting(&c);
	is_there = !pmd_none(pmdp_get_lockless(pmd));
	spin_unlock(ptl);
	wait_for_contender(&c);
	KUNIT_EXPECT_TRUE(test, waits);
	KUNIT_EXPECT_TRUE(test, is_there);
	expect_stamp_of(test, DST_AT + PAGES(1), SRC_AT);
	close_space(test);
}

/* The stack of an execve() */

struct stack_case {
	const char *name;
	unsigned long off;		/* from DST_AT, in bytes */
	unsigned long len;
	unsigned long shift;
};

static const struct stack_case stack_cases[] = {
	{ "by a page", PAGES(9), PAGES(5), PAGES(1) },
	{ "by more than its length", PAGES(9), PAGES(3), PAGES(7) },
	{ "over a table boundary", PAGES(3), PAGES(6), PAGES(4) },
	{ "long, by a few pages", PAGES(9), 2 * PMD_SIZE, PAGES(5) },
	{ "by a table, from a boundary", 0, PMD_SIZE, PMD_SIZE },
	{ "by a table, onto itself", 0, 3 * PMD_SIZE, PMD_SIZE },
	{ "by a table, from the middle of one", PAGES(5), 2 * PMD_SIZE, PMD_SIZE },
	{ "by a table, a few pages", PMD_SIZE - PAGES(3), PAGES(3), PMD_SIZE },
	{ "by a table, a few pages over a boundary", PMD_SIZE - PAGES(2), PAGES(4), PMD_SIZE },
	{ "far, with its tables", PMD_SIZE - PAGES(4), PMD_SIZE + PAGES(4), 8 * PMD_SIZE },
	{ "far, to another offset", PMD_SIZE - PAGES(4), PMD_SIZE + PAGES(4),
	  8 * PMD_SIZE + PAGES(1) },
};

KUNIT_ARRAY_PARAM_DESC(stack, stack_cases, name);

#define NR_STACK_PAGES 4

static void stack_moves_down(struct kunit *test)
{
	const struct stack_case *c = test->param_value;
	unsigned long start = DST_AT + c->off, last = LAST_PAGE(c->len);
	const unsigned long offs[NR_STACK_PAGES] = {
		0, PAGES(1), PAGES(last / 2), PAGES(last),
	};
	struct page *pages[NR_STACK_PAGES];
	unsigned int i;
	int err;

	map_at(test, start, c->len, RW);
	for (i = 0; i < NR_STACK_PAGES; i++) {
		stamp(test, start + offs[i]);
		pages[i] = page_at(start + offs[i]);
		KUNIT_ASSERT_NOT_NULL(test, pages[i]);
	}
	mmap_write_lock(current->mm);
	err = relocate_vma_down(vma_lookup(current->mm, start), c->shift);
	mmap_write_unlock(current->mm);
	KUNIT_ASSERT_EQ(test, err, 0);

	KUNIT_EXPECT_EQ(test, current->mm->map_count, 1);
	expect_vma(test, start - c->shift, start - c->shift + c->len);
	for (i = 0; i < NR_STACK_PAGES; i++) {
		unsigned long addr = start - c->shift + offs[i];

		KUNIT_EXPECT_PTR_EQ(test, page_at(addr), pages[i]);
		expect_stamp_of(test, addr, start + offs[i]);
		expect_rmap(test, pages[i], addr);
	}
	close_space(test);
}

/* What a window does, step by step */

/* All of the move in one window, without planning. */
static void begin_window(struct pagetable_move *pm, struct move_window *win)
{
	struct mm_struct *mm = current->mm;

	vma_start_write(pm->src);
	vma_start_write(pm->dst);
	widen_to_tables(pm);
	pm->cursor = pm->start;
	init_window(win);
	win->tables = 0;
	win->start = pm->start;
	win->end = pm->end;
	win->old_pud = find_used_pud(mm, pm->start);
	win->new_pud = alloc_new_pud(mm, new_addr_of(pm));
	win->old_pmds = table_of_pmds(win->old_pud, pm->start);
	win->new_pmds = table_of_pmds(win->new_pud, new_addr_of(pm));
}

/* Tables that hold entries of others as well stay where everybody finds them. */
static void foreign_tables_are_not_detached(struct kunit *test)
{
	const unsigned long src = SRC_AT + PAGES(3), len = 2 * PMD_SIZE;
	const unsigned long stamps[] = { src - PAGES(1), src, src + PMD_SIZE,
					 src + len - PAGES(1), src + len };
	struct mm_struct *mm = current->mm;
	static struct move_window win;
	struct pagetable_move pm;
	unsigned int i, nr;

	map_at(test, src - PAGES(1), len + PAGES(2), RW);
	for (i = 0; i < ARRAY_SIZE(stamps); i++)
		stamp(test, stamps[i]);
	copy_mapping(test, &pm, src, len, DST_AT + PAGES(4), len);
	if (!can_detach_tables(&pm))
		kunit_skip(test, "needs arch_can_detach_page_tables()");

	mmap_write_lock(mm);
	begin_window(&pm, &win);
	take_rmap_locks(pm.src);
	detach_tables(&pm, &win);
	nr = win.nr_detached;
	reattach_tables(&pm, &win);
	drop_rmap_locks(pm.src);
	mmap_write_unlock(mm);

	KUNIT_EXPECT_EQ(test, nr, 1);
	for (i = 0; i < ARRAY_SIZE(stamps); i++)
		expect_stamp(test, stamps[i]);
	close_space(test);
}

#ifdef CONFIG_ARCH_WANT_BATCHED_UNMAP_TLB_FLUSH
/* Reclaim has announced a flush for what it has unmapped, and not made it yet. */
static void expect_owed_flush(struct kunit *test, struct pagetable_move *pm)
{
	const int owed = 1;

	atomic_set(&current->mm->tlb_flush_batched, owed);
	expect_moved(test, pm);
	KUNIT_EXPECT_NE(test, atomic_read(&current->mm->tlb_flush_batched), owed);
}

static void owed_flush_is_made_up_for(struct kunit *test)
{
	struct pagetable_move pm;

	map_at(test, SRC_AT, PMD_SIZE, RW);
	stamp(test, SRC_AT);
	copy_mapping(test, &pm, SRC_AT, PMD_SIZE, DST_AT, PMD_SIZE);
	expect_owed_flush(test, &pm);
	KUNIT_EXPECT_EQ(test, pm.stats.pmds, 1);
	close_space(test);
}

static void owed_flush_where_nothing_moves(struct kunit *test)
{
	struct pagetable_move pm;

	map_at(test, SRC_AT, PAGES(1), RW);
	leave_table(test, SRC_AT);
	copy_mapping(test, &pm, SRC_AT, PAGES(1), DST_AT + PAGES(1), PAGES(1));
	expect_owed_flush(test, &pm);
	KUNIT_EXPECT_EQ(test, pm.stats.ptes, 0);
	close_space(test);
}
#else
SKIPPED(owed_flush_is_made_up_for, "needs CONFIG_ARCH_WANT_BATCHED_UNMAP_TLB_FLUSH")
SKIPPED(owed_flush_where_nothing_moves, "needs CONFIG_ARCH_WANT_BATCHED_UNMAP_TLB_FLUSH")
#endif

/*
 * A window that comes to a place for which no table was planned ends there. What
 * has moved until then is flushed. It may end earlier, if it has to yield.
 */
static void window_not_as_planned_flushes(struct kunit *test)
{
	const unsigned long dst = DST_AT + PMD_SIZE - PAGES(1);
	struct mm_struct *mm = current->mm;
	static struct move_window win;
	struct pagetable_move pm;
	int err;

	map_at(test, SRC_AT, PAGES(2), RW);
	stamp(test, SRC_AT);
	stamp(test, SRC_AT + PAGES(1));
	copy_mapping(test, &pm, SRC_AT, PAGES(2), dst, PAGES(2));
	leave_table(test, dst);

	mmap_write_lock(mm);
	begin_window(&pm, &win);
	do {
		err = move_under_locks(&pm, &win);
	} while (!err && pm.cursor < pm.end);
	mmap_write_unlock(mm);

	KUNIT_EXPECT_EQ(test, err, -EAGAIN);
	KUNIT_EXPECT_EQ(test, pm.stats.ptes, 1);
	KUNIT_EXPECT_EQ(test, pm.stats.flushes, 1);
	KUNIT_EXPECT_EQ(test, peek(test, SRC_AT), 0);
	expect_stamp_of(test, dst, SRC_AT);
	expect_stamp(test, SRC_AT + PAGES(1));
	close_space(test);
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
/* Of the table of PMDs that maps @addr. */
static bool has_deposit(unsigned long addr)
{
	struct mm_struct *mm = current->mm;
	pmd_t *pmd = mm_find_pmd(mm, addr);
	spinlock_t *ptl = pmd_lock(mm, pmd);
	bool has = pmd_huge_pte(mm, pmd);

	spin_unlock(ptl);
	return has;
}

/* A neighbour fills the slot that was planned for a huge page. */
static void huge_page_stays_if_its_slot_is_filled(struct kunit *test)
{
	struct mm_struct *mm = current->mm;
	static struct move_window win;
	struct pagetable_move pm;
	int err;

	if (IS_ENABLED(CONFIG_S390) || IS_ENABLED(CONFIG_PPC_BOOK3S_64))
		kunit_skip(test, "needs deposits that are a list of pages");
	map_huge(test, SRC_AT, PMD_SIZE);
	copy_mapping(test, &pm, SRC_AT, PMD_SIZE, DST_AT, PMD_SIZE);
	set_vma_flags(test, DST_AT, VM_NOHUGEPAGE, VM_HUGEPAGE);
	leave_table(test, DST_AT);

	mmap_write_lock(mm);
	begin_window(&pm, &win);
	err = move_under_locks(&pm, &win);
	mmap_write_unlock(mm);

	KUNIT_EXPECT_EQ(test, err, -EAGAIN);
	KUNIT_EXPECT_TRUE(test, is_huge_at(SRC_AT));
	KUNIT_ASSERT_TRUE(test, has_deposit(SRC_AT));
	KUNIT_EXPECT_EQ(test, pm.stats.flushes, 0);
	expect_stamp(test, SRC_AT);
	close_space(test);
}
#else
SKIPPED(huge_page_stays_if_its_slot_is_filled, "needs CONFIG_TRANSPARENT_HUGEPAGE")
#endif

/*
 * What is found of a huge page's VMA under the locks was not planned: [SRC_AT,
 * SRC_AT + @len) goes to where a table is, or where one would be needed.
 */
static void expect_huge_page_stays(struct kunit *test, unsigned long len, bool fill_slot)
{
	const unsigned long last = SRC_AT + ALIGN_DOWN(len - 1, PMD_SIZE);
	struct mm_struct *mm = current->mm;
	static struct move_window win;
	struct pagetable_move pm;
	int err = -ENOMEM;
	pmd_t *slot;

	map_huge(test, SRC_AT, last + PMD_SIZE - SRC_AT);
	init_relocation(&pm, SRC_AT, len, DST_AT);

	mmap_write_lock(mm);
	slot = pmd_alloc(mm, alloc_new_pud(mm, DST_AT), DST_AT);
	if (slot && (!fill_slot || !pte_alloc(mm, slot))) {
		begin_window(&pm, &win);
		take_rmap_locks(pm.src);
		err = move_all_entries(&pm, &win);
		drop_rmap_locks(pm.src);
	}
	clear_gap(DST_AT, PMD_SIZE, true);
	mmap_write_unlock(mm);

	KUNIT_EXPECT_EQ(test, err, -EAGAIN);
	KUNIT_EXPECT_TRUE(test, is_huge_at(SRC_AT));
	KUNIT_EXPECT_TRUE(test, is_huge_at(last));
	expect_stamp(test, SRC_AT);
	expect_stamp(test, last);
	close_space(test);
}

static void huge_page_is_not_relocated_to_a_filled_slot(struct kunit *test)
{
	expect_huge_page_stays(test, PMD_SIZE, true);
}

/* As a call does with several that are shifted, without what frees tables. */
static int shift_one(struct pagetable_move *pm, unsigned long addr, unsigned long len,
		     unsigned long shift)
{
	int err;

	init_relocation(pm, addr, len, addr + shift);
	pm->among_others = true;
	err = begin_relocation(pm);
	set_range(addr + (err ? shift : 0), len, NULL);
	mmap_write_unlock(current->mm);
	return err;
}

static int shift_one_back(struct pagetable_move *pm)
{
	unsigned long len = pm->end - pm->start;
	int err;

	mmap_write_lock(current->mm);
	set_range(pm->start, len, pm->src);
	err = relocate_page_tables_back(pm);
	set_range(pm->start + (err ? 0 : pm->shift), len, NULL);
	mmap_write_unlock(current->mm);
	return err;
}

struct others_case {
	const char *name;
	unsigned long first;	/* where eight pages are that go first, of which one is touched */
	unsigned long shift;
	unsigned long len;	/* of what goes next, from the start of the space */
	unsigned long touched[2];	/* pages of that, if not 0 */
};

/* One goes to where another one has left its tables, and comes back without them. */
static const struct others_case others_cases[] = {
	{ "page table, nothing comes", PMD_SIZE, PMD_SIZE, PMD_SIZE, {} },
	{ "page table, a page comes", PMD_SIZE, PMD_SIZE, PMD_SIZE, { PAGES(9) } },
	{ "table of PMDs", ROOM, ROOM, 8 * PMD_SIZE, {} },
	/* The lower part of a table goes to the one that was left, the upper to none. */
	{ "not congruent", 5 * PMD_SIZE, 9 * PMD_SIZE / 2, 4 * PMD_SIZE,
	  { PMD_SIZE + PMD_SIZE / 4, PMD_SIZE + PMD_SIZE * 3 / 4 } },
};

KUNIT_ARRAY_PARAM_DESC(others, others_cases, name);

static bool has_table_at(unsigned long addr)
{
	pmd_t *pmd = mm_find_pmd(current->mm, addr);

	return pmd && classify_pmd(*pmd) == PMD_IS_TABLE;
}

static void tables_of_others_stay(struct kunit *test)
{
	const struct others_case *c = test->param_value;
	const unsigned long addr = SRC_AT + c->first;
	struct pagetable_move first, next;
	unsigned int i;

	map_at(test, SRC_AT, c->len, RW);
	map_at(test, addr, PAGES(8), RWX);
	stamp(test, addr);
	for (i = 0; i < ARRAY_SIZE(c->touched) && c->touched[i]; i++)
		stamp(test, SRC_AT + c->touched[i]);
	KUNIT_ASSERT_EQ(test, shift_one(&first, addr, PAGES(8), c->shift), 0);
	KUNIT_ASSERT_TRUE(test, has_table_at(addr));
	KUNIT_ASSERT_EQ(test, shift_one(&next, SRC_AT, c->len, c->shift), 0);
	KUNIT_EXPECT_EQ(test, shift_one_back(&next), 0);
	KUNIT_EXPECT_TRUE(test, has_table_at(addr));
	KUNIT_EXPECT_EQ(test, shift_one_back(&first), 0);
	expect_stamp(test, addr);
	KUNIT_EXPECT_NULL(test, page_at(addr + c->shift));
	for (i = 0; i < ARRAY_SIZE(c->touched) && c->touched[i]; i++)
		expect_stamp(test, SRC_AT + c->touched[i]);

	mmap_write_lock(current->mm);
	if (c->len < c->first)
		clear_gap(SRC_AT + c->len, c->first - c->len, true);
	clear_gap(addr + PAGES(8), 2 * ROOM, true);
	mmap_write_unlock(current->mm);
	close_space(test);
}

struct left_case {
	const char *name;
	unsigned long len;
	unsigned long filled;	/* where a page is, if not 0 */
	unsigned long empty;	/* where another one has left a table */
};

/* The way back to a staging place */
static const struct left_case left_cases[] = {
	{ "page table", 4 * PMD_SIZE, PMD_SIZE, 2 * PMD_SIZE },
	{ "table of PMDs", ROOM, 0, 2 * PMD_SIZE },
};

KUNIT_ARRAY_PARAM_DESC(left, left_cases, name);

static void empty_table_is_left(struct kunit *test)
{
	const struct left_case *c = test->param_value;
	struct pagetable_move pm;

	map_at(test, SRC_AT, c->len, RW);
	if (c->filled)
		stamp(test, SRC_AT + c->filled);
	copy_mapping(test, &pm, SRC_AT, c->len, DST_AT, c->len);
	pm.leave_empty = true;
	expect_moved(test, &pm);
	leave_table(test, DST_AT + c->empty);
	expect_moved_back(test, &pm);

	KUNIT_EXPECT_TRUE(test, has_table_at(DST_AT + c->empty));
	KUNIT_EXPECT_FALSE(test, has_table_at(SRC_AT + c->empty));
	if (c->filled) {
		KUNIT_EXPECT_EQ(test, has_table_at(DST_AT + c->filled),
				!IS_ENABLED(CONFIG_HAVE_MOVE_PMD));
		expect_stamp(test, SRC_AT + c->filled);
	}
	close_space(test);
}

/* It has left no table, and comes back with the one that it became. */
static void huge_page_that_was_split_goes_back(struct kunit *test)
{
	struct pagetable_move pm;

	if (!arch_can_detach_page_tables())
		kunit_skip(test, "needs tables that can be detached");
	map_huge(test, SRC_AT, PMD_SIZE);
	stamp(test, SRC_AT + PAGES(9));
	KUNIT_ASSERT_EQ(test, shift_one(&pm, SRC_AT, PMD_SIZE, ROOM), 0);
	KUNIT_ASSERT_TRUE(test, is_huge_at(SRC_AT + ROOM));
	split_huge_pmd(pm.src, mm_find_pmd(current->mm, SRC_AT + ROOM), SRC_AT + ROOM);
	KUNIT_EXPECT_EQ(test, shift_one_back(&pm), 0);
	KUNIT_EXPECT_TRUE(test, has_table_at(SRC_AT));
	KUNIT_EXPECT_FALSE(test, has_table_at(SRC_AT + ROOM));
	expect_stamp(test, SRC_AT);
	expect_stamp(test, SRC_AT + PAGES(9));

	mmap_write_lock(current->mm);
	clear_gap(SRC_AT + ROOM, PMD_SIZE, true);
	mmap_write_unlock(current->mm);
	close_space(test);
}

/* Where it was, somebody else has been meanwhile and left a table. */
static void huge_page_goes_back_to_a_filled_slot(struct kunit *test)
{
	struct mm_struct *mm = current->mm;
	struct pagetable_move pm;

	map_huge(test, SRC_AT, PMD_SIZE);
	KUNIT_ASSERT_EQ(test, shift_one(&pm, SRC_AT, PMD_SIZE, ROOM), 0);
	KUNIT_ASSERT_EQ(test, pte_alloc(mm, mm_find_pmd(mm, SRC_AT)), 0);
	KUNIT_EXPECT_EQ(test, shift_one_back(&pm), 0);
	KUNIT_EXPECT_PTR_EQ(test, vma_at(SRC_AT), pm.src);
	KUNIT_EXPECT_NULL(test, vma_at(SRC_AT + ROOM));
	expect_stamp(test, SRC_AT);

	mmap_write_lock(mm);
	clear_gap(SRC_AT + ROOM, PMD_SIZE, true);
	mmap_write_unlock(mm);
	close_space(test);
}

static void huge_page_is_not_split_under_the_locks(struct kunit *test)
{
	/* A single part is not planned again under them; a second one is. */
	expect_huge_page_stays(test, PMD_SIZE + PMD_SIZE / 2, false);
}

/*
 * MGLRU takes the accessed bit off the entry of a table, and any use of what is
 * mapped there sets it again, while a move waits for the lock of that table.
 */
static void accessed_table_is_the_same(struct kunit *test)
{
	struct vm_area_struct *vma;
	pmd_t *pmdp, before;

	if (!arch_has_hw_nonleaf_pmd_young())
		kunit_skip(test, "needs accessed bits in entries of tables");
	map_at(test, SRC_AT, PAGES(1), RW);
	stamp(test, SRC_AT);
	vma = vma_at(SRC_AT);
	pmdp = mm_find_pmd(current->mm, SRC_AT);
	before = pmdp_get(pmdp);
	KUNIT_EXPECT_TRUE(test, is_same_table(pmdp, before));
	KUNIT_EXPECT_TRUE(test, pmdp_test_and_clear_young(vma, SRC_AT, pmdp));
	KUNIT_EXPECT_FALSE(test, pmd_same(pmdp_get(pmdp), before));
	KUNIT_EXPECT_TRUE(test, is_same_table(pmdp, before));
	close_space(test);
}

/*
 * What is found under the locks is not what was planned: nothing moves, not even
 * what could. Here the first page finds a table, and the second one would need one.
 */
static void relocation_not_as_planned_stays(struct kunit *test)
{
	const struct move_case c = {
		.dst = PMD_SIZE - PAGES(1), .len = PAGES(2),
		.flags = OTHER_BELOW_DST, .nr_pages = 2, .pages = { 0, 1 },
	};
	struct mm_struct *mm = current->mm;
	struct page *pages[MAX_PAGES];
	static struct move_window win;
	struct pagetable_move pm;
	int err;

	set_up_relocation(test, &c, &pm, pages);

	mmap_write_lock(mm);
	begin_window(&pm, &win);
	take_rmap_locks(pm.src);
	err = move_all_entries(&pm, &win);
	drop_rmap_locks(pm.src);
	mmap_write_unlock(mm);

	KUNIT_EXPECT_EQ(test, err, -EAGAIN);
	KUNIT_EXPECT_EQ(test, pm.stats.ptes, 0);
	expect_pages(test, &c, pages, SRC_AT, DST_AT + c.dst);
	close_space(test);
}

static struct kunit_case table_tests[] = {
	KUNIT_CASE(stack_table_aligns_within_its_vma),
	KUNIT_CASE(table_aligns_up_to_what_is_mapped),
	KUNIT_CASE_PARAM(tables_move, move_gen_params),
	KUNIT_CASE_PARAM(tables_move_back, move_gen_params),
	KUNIT_CASE_PARAM(tables_relocate, move_gen_params),
	KUNIT_CASE_PARAM(tables_relocate_back, move_gen_params),
	KUNIT_CASE(tables_that_stay_are_freed),
	KUNIT_CASE(nothing_is_relocated_back),
	KUNIT_CASE_PARAM(entries_are_set_aside, shift_gen_params),
	KUNIT_CASE(one_window_can_be_relocated),
	KUNIT_CASE_PARAM(part_moves_back, move_gen_params),
	KUNIT_CASE_PARAM(random_layouts_move_back, layout_gen_params),
	KUNIT_CASE_PARAM(random_layouts_relocate, layout_gen_params),
	KUNIT_CASE(next_table_of_pmds_is_another),
	KUNIT_CASE(no_table_for_nothing),
	KUNIT_CASE(table_of_pmds_moves_far),
	KUNIT_CASE(holes_are_passed_at_once),
	KUNIT_CASE_PARAM(entries_keep_their_kind_in_a_table, entry_gen_params),
	KUNIT_CASE_PARAM(entries_keep_their_kind_alone, entry_gen_params),
	KUNIT_CASE_PARAM(entries_keep_their_kind_in_part, entry_gen_params),
	KUNIT_CASE(contiguous_entries_move),
	KUNIT_CASE(blocks_move_as_they_are),
	KUNIT_CASE(blocks_come_apart),
	KUNIT_CASE(huge_zero_page_moves),
	KUNIT_CASE(huge_entries_keep_their_kind),
	KUNIT_CASE(huge_run_ends_at_a_table),
	KUNIT_CASE(grown_file_is_found),
	KUNIT_CASE(device_tables_are_flushed_one_by_one),
	KUNIT_CASE(secondary_mmus_are_told),
	KUNIT_CASE_PARAM(flushes_come_in_time, flush_gen_params),
	KUNIT_CASE(stack_is_flushed_under_its_lock),
	KUNIT_CASE(locks_are_taken_by_address),
	KUNIT_CASE(locked_table_is_not_detached),
	KUNIT_CASE_PARAM(stack_moves_down, stack_gen_params),
	KUNIT_CASE(foreign_tables_are_not_detached),
	KUNIT_CASE(owed_flush_is_made_up_for),
	KUNIT_CASE(owed_flush_where_nothing_moves),
	KUNIT_CASE(window_not_as_planned_flushes),
	KUNIT_CASE(accessed_table_is_the_same),
	KUNIT_CASE(relocation_not_as_planned_stays),
	KUNIT_CASE(huge_page_stays_if_its_slot_is_filled),
	KUNIT_CASE(huge_page_is_not_relocated_to_a_filled_slot),
	KUNIT_CASE(huge_page_is_not_split_under_the_locks),
	KUNIT_CASE(huge_page_goes_back_to_a_filled_slot),
	KUNIT_CASE_PARAM(tables_of_others_stay, others_gen_params),
	KUNIT_CASE(huge_page_that_was_split_goes_back),
	KUNIT_CASE_PARAM(empty_table_is_left, left_gen_params),
	{}
};

static struct kunit_suite table_suite = {
	.name = "mremap_tables",
	.init = space_init,
	.exit = space_exit,
	.test_cases = table_tests,
};

kunit_test_suites(&walk_suite, &table_suite);
