// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests for mm/mremap_call.c, which includes this file at its end. Suites:
 *
 *   mremap_request  what can be told from a request alone
 *   mremap_vmas     checks and steps, on the VMAs of a real address space
 *   mremap_calls    whole calls that user space could not make fail
 */

#include <linux/anon_inodes.h>
#include <linux/cred.h>

#include "mremap_kunit.h"

#define MAYMOVE		MREMAP_MAYMOVE
#define FIXED		MREMAP_FIXED
#define DONTUNMAP	MREMAP_DONTUNMAP

/* Requests */

/* All in pages: the old place from SRC_AT on, and the new one from DST_AT on. */
static struct mremap_request request(unsigned long addr, unsigned long old_len,
				     unsigned long new_len, unsigned long flags,
				     unsigned long new_addr)
{
	return (struct mremap_request) {
		.addr = SRC_AT + PAGES(addr),
		.old_len = PAGES(old_len),
		.new_len = PAGES(new_len),
		.flags = flags,
		.new_addr = DST_AT + PAGES(new_addr),
	};
}

/* Destinations of what is at page 10. A new page that is negative counts from the end. */
struct dst_case {
	const char *name;
	unsigned long old_len;
	long new_page;
	unsigned long new_len;
	bool overlaps;
	int want;
};

static const struct dst_case dst_cases[] = {
	{ "second view in its place", 0, 10, 1, false, 0 },
	{ "second view around it", 0, 9, 3, true, -EINVAL },
	{ "up to the last page", 4, -4, 4, false, 0 },
	{ "a page too far", 4, -3, 4, false, -EINVAL },
	{ "at the end", 4, 0, ULONG_MAX >> PAGE_SHIFT, true, -EINVAL },
};

KUNIT_ARRAY_PARAM_DESC(dst, dst_cases, name);

static void destination_is_checked(struct kunit *test)
{
	const struct dst_case *c = test->param_value;
	unsigned long from = c->new_page < 0 ? PAGE_ALIGN_DOWN(TASK_SIZE) : 0;
	struct mremap_request req = {
		.addr = PAGES(10),
		.old_len = PAGES(c->old_len),
		.new_addr = from + PAGES(c->new_page),
		.new_len = PAGES(c->new_len),
	};

	KUNIT_EXPECT_EQ(test, ranges_overlap(&req), c->overlaps);
	KUNIT_EXPECT_EQ(test, check_destination(&req), c->want);
	req.new_addr++;
	KUNIT_EXPECT_EQ(test, check_destination(&req), -EINVAL);
}

/* Asked of a VMA of 10 pages, for a range that starts with it; lengths are in pages. */
struct several_case {
	const char *name;
	unsigned long flags;
	unsigned long old_len;
	unsigned long new_len;
	bool want;
};

static const struct several_case several_cases[] = {
	{ "fixed", MAYMOVE | FIXED, 11, 11, true },
	{ "fixed, source stays", MAYMOVE | FIXED | DONTUNMAP, 11, 11, true },
	{ "source stays", MAYMOVE | DONTUNMAP, 11, 11, true },
	{ "fixed, grows", MAYMOVE | FIXED, 11, 12, true },
	{ "fixed, shrinks but to several", MAYMOVE | FIXED, 15, 11, true },
	{ "fixed, shrinks to one", MAYMOVE | FIXED, 11, 10, false },
	{ "one that grows", MAYMOVE, 10, 11, false },
	{ "grows", MAYMOVE, 11, 12, true },
	{ "grows but may not move", 0, 11, 12, false },
	{ "nothing to do", MAYMOVE, 11, 11, false },
	{ "shrinks at its place", MAYMOVE, 15, 11, false },
	{ "so long that it wraps", MAYMOVE | FIXED, -5UL, -5UL, true },
};

KUNIT_ARRAY_PARAM_DESC(several, several_cases, name);

static void several_are_told_from_one(struct kunit *test)
{
	const struct several_case *c = test->param_value;
	const struct mremap_request req = request(0, c->old_len, c->new_len, c->flags, 0);
	const struct vm_area_struct vma = {
		.vm_start = SRC_AT,
		.vm_end = SRC_AT + PAGES(10),
	};

	KUNIT_EXPECT_EQ(test, covers_several(&vma, &req), c->want);
}

/* A hole, and where in it something goes so that its tables can move. */
struct hole_case {
	const char *name;
	unsigned long end;		/* of the hole, which starts at 8 tables */
	unsigned long len;
	unsigned long old;
	unsigned long bottomup;
	unsigned long topdown;
};

static const struct hole_case hole_cases[] = {
	{ "aligned", 10 * PMD_SIZE, PMD_SIZE, 2 * PMD_SIZE, 8 * PMD_SIZE, 9 * PMD_SIZE },
	{ "just above a boundary", 10 * PMD_SIZE, PMD_SIZE, PAGES(3),
	  8 * PMD_SIZE + PAGES(3), 8 * PMD_SIZE + PAGES(3) },
	{ "just below a boundary", 10 * PMD_SIZE, PMD_SIZE,
	  2 * PMD_SIZE - PAGES(1), 9 * PMD_SIZE - PAGES(1),
	  9 * PMD_SIZE - PAGES(1) },
	{ "old above the hole", 10 * PMD_SIZE, PMD_SIZE, 20 * PMD_SIZE + PAGES(3),
	  8 * PMD_SIZE + PAGES(3), 8 * PMD_SIZE + PAGES(3) },
	{ "wide hole", 12 * PMD_SIZE, PMD_SIZE, PAGES(3),
	  8 * PMD_SIZE + PAGES(3), 10 * PMD_SIZE + PAGES(3) },
	{ "length of no whole tables", 12 * PMD_SIZE, PMD_SIZE + PAGES(5),
	  PAGES(3), 8 * PMD_SIZE + PAGES(3), 10 * PMD_SIZE + PAGES(3) },
	{ "length that just fits", 12 * PMD_SIZE, 2 * PMD_SIZE - PAGES(3),
	  PAGES(3), 8 * PMD_SIZE + PAGES(3), 10 * PMD_SIZE + PAGES(3) },
};

KUNIT_ARRAY_PARAM_DESC(hole, hole_cases, name);

static void place_is_congruent(struct kunit *test)
{
	const struct hole_case *c = test->param_value;
	const unsigned long start = 8 * PMD_SIZE;

	KUNIT_EXPECT_EQ(test, c->bottomup,
			congruent_in_hole(start, c->end, c->len, PMD_SIZE,
					  c->old, false));
	KUNIT_EXPECT_EQ(test, c->topdown,
			congruent_in_hole(start, c->end, c->len, PMD_SIZE,
					  c->old, true));
}

struct whole_case {
	const char *name;
	unsigned long addr;
	unsigned long len;
	bool want;
};

static const struct whole_case whole_cases[] = {
	{ "exactly one", 3 * PMD_SIZE, PMD_SIZE, true },
	{ "a page less", 3 * PMD_SIZE, PMD_SIZE - PAGE_SIZE, false },
	{ "long enough, at the wrong place", 3 * PMD_SIZE + PAGE_SIZE,
	  2 * PMD_SIZE - PAGES(2), false },
	{ "long enough for one at any place", 3 * PMD_SIZE + PAGE_SIZE,
	  2 * PMD_SIZE - PAGE_SIZE, true },
	{ "in the middle", 3 * PMD_SIZE - PAGE_SIZE, PMD_SIZE + PAGES(2), true },
	{ "none", 3 * PMD_SIZE, 0, false },
	{ "no boundary above", -PAGES(2), PAGES(1), false },
};

KUNIT_ARRAY_PARAM_DESC(whole, whole_cases, name);

static void whole_tables_are_found(struct kunit *test)
{
	const struct whole_case *c = test->param_value;
	const struct vma_move mv = { .addr = c->addr, .len = c->len };

	KUNIT_EXPECT_EQ(test, holds_whole(&mv, PMD_SIZE), c->want);
}

struct table_case {
	unsigned long len;		/* of what moves, in bytes */
	unsigned long dst_len;		/* of the new mapping */
	unsigned long size;		/* what the place is to be congruent by */
};

/* What has room for tables of its own is placed for them; not huge pages to be. */
static void place_is_for_whole_tables(struct kunit *test)
{
	const struct table_case cases[] = {
		{ PAGES(1), PMD_SIZE / 8 - PAGES(1), 0 },
		{ PAGES(1), PMD_SIZE / 8, PMD_SIZE },
		{ PMD_SIZE / 2, PMD_SIZE - PAGES(1), PMD_SIZE },
		{ PMD_SIZE / 2, PMD_SIZE, 0 },
		{ PMD_SIZE / 2, 2 * PMD_SIZE, 0 },
		{ PMD_SIZE / 2, 2 * PMD_SIZE + PAGES(1), PMD_SIZE },
		{ PMD_SIZE, 2 * PMD_SIZE, PMD_SIZE },
		{ PUD_SIZE, PUD_SIZE + PAGES(1), PUD_SIZE },
	};
	static struct mm_struct mm;
	struct vm_area_struct vma = { .vm_mm = &mm };
	unsigned int i;

	if (!IS_ENABLED(CONFIG_64BIT))
		kunit_skip(test, "address space is scarce");
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		const struct vma_move mv = {
			.addr = SRC_AT, .len = cases[i].len,
			.dst_len = cases[i].dst_len, .src = &vma,
		};
		bool is_small = cases[i].size == PMD_SIZE && mv.len < PMD_SIZE;

		mm.map_count = 1;
		KUNIT_EXPECT_EQ_MSG(test, congruence_for(&mv), cases[i].size, "case %u", i);
		/* With so many mappings small ones share their tables. */
		mm.map_count = TASK_SIZE / PMD_SIZE / 4 + 1;
		KUNIT_EXPECT_EQ_MSG(test, congruence_for(&mv),
				    is_small ? 0 : cases[i].size, "case %u", i);
	}
}

static struct kunit_case request_tests[] = {
	KUNIT_CASE_PARAM(destination_is_checked, dst_gen_params),
	KUNIT_CASE_PARAM(several_are_told_from_one, several_gen_params),
	KUNIT_CASE_PARAM(place_is_congruent, hole_gen_params),
	KUNIT_CASE_PARAM(whole_tables_are_found, whole_gen_params),
	KUNIT_CASE(place_is_for_whole_tables),
	{}
};

static struct kunit_suite request_suite = {
	.name = "mremap_request",
	.test_cases = request_tests,
};

/* VMAs */

static struct mremap_op *new_op(struct kunit *test, struct mremap_request req)
{
	struct {
		struct mremap_op op;
		struct vma_move only;
		struct dst_range only_range;
	} *all = kunit_kzalloc(test, sizeof(*all), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, all);
	all->op = (struct mremap_op) {
		.req = req,
		.mm = current->mm,
		.moves = &all->only,
		.only = &all->only,
		.nr_moves = 1,
		.ranges = &all->only_range,
		.only_range = &all->only_range,
		.max_ranges = 1,
		.uffd_unmap_dst = LIST_HEAD_INIT(all->op.uffd_unmap_dst),
		.uffd_unmap_src = LIST_HEAD_INIT(all->op.uffd_unmap_src),
	};
	return &all->op;
}

/* One after the other: 4 pages RW, 4 R, a gap of 4, 4 RW, locked and charged. */
static void map_survey_area(struct kunit *test)
{
	map_at(test, SRC_AT, PAGES(4), RW);
	map_at(test, SRC_AT + PAGES(4), PAGES(4), PROT_READ);
	map_at(test, SRC_AT + PAGES(12), PAGES(4), RW);
	set_vma_flags(test, SRC_AT + PAGES(12), VM_LOCKED | VM_ACCOUNT, 0);
}

static void unmap_survey_area(struct kunit *test)
{
	set_vma_flags(test, SRC_AT + PAGES(12), 0, VM_LOCKED | VM_ACCOUNT);
	close_space(test);
}

static void shrinkage_is_checked(struct kunit *test)
{
	struct mremap_request req = request(0, 20, 2, 0, 0);
	struct vm_area_struct *vma;

	map_survey_area(test);
	vma = vma_at(SRC_AT);
	mmap_write_lock(current->mm);
	KUNIT_EXPECT_EQ(test, check_shrinkage(vma, &req), 0);
	/* Up to the last page, and a page too far */
	req.old_len = PAGE_ALIGN_DOWN(TASK_SIZE) - SRC_AT;
	KUNIT_EXPECT_EQ(test, check_shrinkage(vma, &req), 0);
	req.old_len += PAGES(1);
	KUNIT_EXPECT_EQ(test, check_shrinkage(vma, &req), -EINVAL);
	/* The end of the old range is 0, or small again. */
	req.old_len = -SRC_AT;
	KUNIT_EXPECT_EQ(test, check_shrinkage(vma, &req), -EINVAL);
	req.old_len = -PAGE_SIZE;
	KUNIT_EXPECT_EQ(test, check_shrinkage(vma, &req), -EINVAL);
	/* Even the start of what is dropped wraps. */
	req.new_len = -SRC_AT + PAGES(1);
	KUNIT_EXPECT_EQ(test, check_shrinkage(vma, &req), -EINVAL);
	/* Nothing to drop, nothing to be wrong. */
	req.new_len = req.old_len;
	KUNIT_EXPECT_EQ(test, check_shrinkage(vma, &req), 0);
	mmap_write_unlock(current->mm);
	unmap_survey_area(test);
}

/* Requests for a VMA of 10 pages at SRC_AT, in pages from there. */
struct resize_case {
	const char *name;
	unsigned long addr;
	unsigned long old_len;
	unsigned long new_len;
	unsigned long flags;
	vm_flags_t vm_flags;
	pgoff_t pgoff;
	int want;
};

static const struct resize_case resize_cases[] = {
	{ .name = "grows", .old_len = 10, .new_len = 20 },
	{ .name = "grows from a part", .addr = 3, .old_len = 7, .new_len = 8 },
	{ .name = "too long by a page", .addr = 3, .old_len = 8, .new_len = 9, .want = -EFAULT },
	{ .name = "shrinks from beyond its end", .old_len = 20, .new_len = 10 },
	{ .name = "shrinks to beyond its end", .old_len = 20, .new_len = 11, .want = -EFAULT },
	{ .name = "second view of a private mapping", .new_len = 10, .want = -EINVAL },
	{ .name = "second view of a shared mapping", .new_len = 10,
	  .vm_flags = VM_SHARED | VM_MAYSHARE },
	{ .name = "second view of one shared for reading", .new_len = 10,
	  .vm_flags = VM_MAYSHARE },
	{ .name = "source stays", .old_len = 10, .new_len = 10, .flags = MAYMOVE | DONTUNMAP },
	{ .name = "source of a device stays", .old_len = 10, .new_len = 10,
	  .flags = MAYMOVE | DONTUNMAP, .vm_flags = VM_PFNMAP, .want = -EINVAL },
	{ .name = "source that must not grow stays", .old_len = 10,
	  .new_len = 10, .flags = MAYMOVE | DONTUNMAP, .vm_flags = VM_DONTEXPAND,
	  .want = -EINVAL },
	{ .name = "device grows", .old_len = 10, .new_len = 11,
	  .vm_flags = VM_PFNMAP, .want = -EFAULT },
	{ .name = "what must not grow grows", .old_len = 10, .new_len = 11,
	  .vm_flags = VM_DONTEXPAND, .want = -EFAULT },
	{ .name = "what must not grow moves", .old_len = 10, .new_len = 10,
	  .flags = MAYMOVE | FIXED, .vm_flags = VM_DONTEXPAND | VM_PFNMAP },
	{ .name = "grows to the last offset", .old_len = 10, .new_len = 20, .pgoff = -21UL },
	{ .name = "grows beyond all offsets", .old_len = 10, .new_len = 20,
	  .pgoff = -20UL, .want = -EINVAL },
	{ .name = "moves at the last offset", .old_len = 10, .new_len = 10,
	  .flags = MAYMOVE | FIXED, .pgoff = -10UL },
	{ .name = "offset before the device", .old_len = 10, .new_len = 20,
	  .vm_flags = VM_PFNMAP, .pgoff = -20UL, .want = -EINVAL },
	{ .name = "length before the offset", .old_len = 11, .new_len = 20,
	  .pgoff = -20UL, .want = -EFAULT },
};

KUNIT_ARRAY_PARAM_DESC(resize, resize_cases, name);

static void resize_is_checked(struct kunit *test)
{
	const struct resize_case *c = test->param_value;
	struct vm_area_struct vma = {
		.vm_start = SRC_AT,
		.vm_end = SRC_AT + PAGES(10),
		.vm_pgoff = c->pgoff,
		.vm_flags = VM_READ | c->vm_flags,
		.vm_mm = current->mm,
	};
	struct mremap_op *op = new_op(test, request(c->addr, c->old_len, c->new_len,
						    c->flags, 0));

	plan_only_move(op->moves, &vma, &op->req);
	mmap_write_lock(current->mm);
	KUNIT_EXPECT_EQ(test, check_resize(op), c->want);
	mmap_write_unlock(current->mm);
	close_space(test);
}

static void expect_survey(struct kunit *test, const struct range_survey *survey,
			  unsigned long total, unsigned long data,
			  unsigned long locked, unsigned long charged)
{
	KUNIT_EXPECT_EQ(test, survey->total, total);
	KUNIT_EXPECT_EQ(test, survey->data, data);
	KUNIT_EXPECT_EQ(test, survey->locked, locked);
	KUNIT_EXPECT_EQ(test, survey->charged, charged);
}

static void addition_is_surveyed(struct kunit *test)
{
	struct mremap_op *op = new_op(test, request(12, 4, 9, 0, 0));

	map_survey_area(test);
	op->moves->vm_flags = VM_READ | VM_WRITE | VM_LOCKED | VM_ACCOUNT;
	mmap_write_lock(op->mm);
	survey_addition(op);
	expect_survey(test, &op->added, 5, 5, 5, 5);

	op->moves->vm_flags = VM_READ;
	survey_addition(op);
	expect_survey(test, &op->added, 5, 0, 0, 0);

	/* What stays mapped comes twice, but the lock goes along. */
	op->req = request(12, 4, 4, MAYMOVE | DONTUNMAP, 0);
	plan_only_move(op->moves, vma_lookup(op->mm, op->req.addr), &op->req);
	survey_addition(op);
	expect_survey(test, &op->added, 4, 4, 0, 4);

	/* That, and what it grows by */
	op->req.new_len += PAGES(3);
	survey_addition(op);
	expect_survey(test, &op->added, 7, 7, 3, 7);
	mmap_write_unlock(op->mm);
	unmap_survey_area(test);
}

/* Limits, in pages, against 12 pages mapped, 8 of data, 4 locked. */
struct limit_case {
	const char *name;
	struct range_survey added;
	struct range_survey freed;
	unsigned long limit_as;
	unsigned long limit_data;
	unsigned long limit_data_max;
	unsigned long limit_memlock;
	bool may_lock;
	int want;
};

static const struct limit_case limit_cases[] = {
	{ .name = "just fits", .added = { .total = 5 }, .limit_as = 17 },
	{ .name = "one page too much", .added = { .total = 6 }, .limit_as = 17, .want = -ENOMEM },
	{ .name = "takes the place of others", .added = { .total = 6 },
	  .freed = { .total = 1 }, .limit_as = 17 },
	{ .name = "frees more than it takes", .added = { .total = 1 },
	  .freed = { .total = 6 }, .limit_as = 7 },
	{ .name = "nothing added, limit passed before", .limit_as = 1 },
	{ .name = "lock just fits", .added = { .total = 2, .locked = 2 },
	  .limit_as = 100, .limit_memlock = 6 },
	{ .name = "one locked page too much",
	  .added = { .total = 3, .locked = 3 },
	  .limit_as = 100, .limit_memlock = 6, .want = -EAGAIN },
	{ .name = "takes the place of locked pages",
	  .added = { .total = 3, .locked = 3 },
	  .freed = { .total = 1, .locked = 1 },
	  .limit_as = 100, .limit_memlock = 6 },
	{ .name = "may lock what it likes", .added = { .total = 3, .locked = 3 },
	  .limit_as = 100, .limit_memlock = 6, .may_lock = true },
	{ .name = "grows what is not locked, lock limit passed before",
	  .added = { .total = 3 }, .limit_as = 100, .limit_memlock = 1 },
	{ .name = "lock before size", .added = { .total = 3, .locked = 3 },
	  .limit_as = 1, .limit_memlock = 6, .want = -EAGAIN },
	{ .name = "data just fits", .added = { .total = 5, .data = 5 },
	  .limit_as = 100, .limit_data = 13 },
	{ .name = "one page of data too much",
	  .added = { .total = 6, .data = 6 },
	  .limit_as = 100, .limit_data = 13, .want = -ENOMEM },
	{ .name = "takes the place of data", .added = { .total = 6, .data = 6 },
	  .freed = { .total = 1, .data = 1 },
	  .limit_as = 100, .limit_data = 13 },
	{ .name = "takes the place of what is no data",
	  .added = { .total = 6, .data = 6 }, .freed = { .total = 6 },
	  .limit_as = 100, .limit_data = 13, .want = -ENOMEM },
	{ .name = "no limit but a hard one", .added = { .total = 5, .data = 5 },
	  .limit_as = 100, .limit_data_max = 13 },
	{ .name = "hard limit, takes the place of what is no data",
	  .added = { .total = 6, .data = 6 }, .freed = { .total = 6 },
	  .limit_as = 100, .limit_data_max = 13, .want = -ENOMEM },
};

KUNIT_ARRAY_PARAM_DESC(limit, limit_cases, name);

static void limits_are_checked(struct kunit *test)
{
	const struct limit_case *c = test->param_value;
	struct rlimit *rlim = current->signal->rlim;
	struct mremap_op *op = new_op(test, (struct mremap_request) {});
	const struct cred *old_cred;
	struct cred *cred;

	cred = prepare_creds();
	KUNIT_ASSERT_NOT_NULL(test, cred);
	if (!c->may_lock)
		cap_clear(cred->cap_effective);
	/* This thread's alone, and it ends with the test. */
	rlim[RLIMIT_AS].rlim_cur = PAGES(c->limit_as);
	rlim[RLIMIT_DATA].rlim_cur = PAGES(c->limit_data);
	rlim[RLIMIT_DATA].rlim_max = PAGES(c->limit_data_max);
	rlim[RLIMIT_MEMLOCK].rlim_cur = PAGES(c->limit_memlock);
	op->added = c->added;
	op->replaced = c->freed;
	op->mm->total_vm = 12;
	op->mm->data_vm = 8;
	op->mm->locked_vm = 4;

	old_cred = override_creds(cred);
	KUNIT_EXPECT_EQ(test, check_limits(op), c->want);
	revert_creds(old_cred);
	put_cred(cred);

	op->mm->total_vm = 0;
	op->mm->data_vm = 0;
	op->mm->locked_vm = 0;
	close_space(test);
}

struct ledger_case {
	const char *name;
	unsigned long added;
	unsigned long given_back;	/* by the old destination */
	unsigned long charged;
	unsigned long owed;
};

static const struct ledger_case ledger_cases[] = {
	{ "nothing", 0, 0, 0, 0 },
	{ "all of it new", 5, 0, 5, 0 },
	{ "some taken over", 5, 3, 2, 3 },
	{ "all taken over", 5, 5, 0, 5 },
	{ "more given back than needed", 5, 9, 0, 5 },
	{ "given back, nothing needed", 0, 9, 0, 0 },
};

KUNIT_ARRAY_PARAM_DESC(ledger, ledger_cases, name);

static void ledger_balances(struct kunit *test)
{
	const struct ledger_case *c = test->param_value;
	struct vma_munmap_struct vms = { .nr_accounted = c->given_back };
	struct mremap_op *op = new_op(test, (struct mremap_request) {});

	vm_acct_memory(c->owed);
	op->added.charged = c->added;
	op->replaced.charged = c->given_back;
	KUNIT_EXPECT_EQ(test, charge(op), 0);
	KUNIT_EXPECT_EQ(test, op->charged, c->charged);
	KUNIT_EXPECT_EQ(test, op->owed, c->owed);
	take_over_charge(op, &vms);
	KUNIT_EXPECT_EQ(test, vms.nr_accounted, c->given_back - c->owed);
	KUNIT_EXPECT_EQ(test, op->charged, c->added);
	KUNIT_EXPECT_EQ(test, op->owed, 0);
	uncharge(op);
	KUNIT_EXPECT_EQ(test, op->charged, 0);
	close_space(test);
}

/* Page faults could not lock it alone any more. */
static bool is_marked_detached(unsigned long addr)
{
#ifdef CONFIG_PER_VMA_LOCK
	return vma_at(addr)->detached;
#else
	return false;
#endif
}

/* What cannot be taken off, here for being sealed, leaves nothing taken off. */
#ifdef CONFIG_64BIT
static void unmappings_are_aborted(struct kunit *test)
{
	struct mremap_op *op = new_op(test, request(0, 16, 4, MAYMOVE | FIXED, 0));
	static struct unmapping source, tail;
	static struct dst_range ranges[2];
	struct mm_struct *mm = op->mm;

	map_survey_area(test);
	set_vma_flags(test, SRC_AT, VM_SEALED, 0);

	/* The tail comes first. */
	init_unmapping(&source);
	mmap_write_lock(mm);
	KUNIT_EXPECT_EQ(test, gather_sources(op, &source, &tail), -EPERM);
	mmap_write_unlock(mm);
	KUNIT_EXPECT_FALSE(test, is_marked_detached(SRC_AT));
	KUNIT_EXPECT_FALSE(test, is_marked_detached(SRC_AT + PAGES(4)));
	KUNIT_EXPECT_FALSE(test, is_marked_detached(SRC_AT + PAGES(12)));

	/* As destination ranges, the other way round */
	ranges[0] = (struct dst_range) {
		.start = SRC_AT + PAGES(4), .end = SRC_AT + PAGES(8), .occupied = true,
	};
	ranges[1] = (struct dst_range) {
		.start = SRC_AT, .end = SRC_AT + PAGES(4), .occupied = true,
	};
	op->ranges = ranges;
	op->nr_ranges = 2;
	mmap_write_lock(mm);
	KUNIT_EXPECT_EQ(test, unmap_dst_ranges(op), -EPERM);
	mmap_write_unlock(mm);
	KUNIT_EXPECT_FALSE(test, is_marked_detached(SRC_AT));
	KUNIT_EXPECT_FALSE(test, is_marked_detached(SRC_AT + PAGES(4)));
	KUNIT_EXPECT_EQ(test, mm->map_count, 3);
	KUNIT_EXPECT_EQ(test, mm->total_vm, 12);

	set_vma_flags(test, SRC_AT, 0, VM_SEALED);
	unmap_survey_area(test);
}
#else
SKIPPED(unmappings_are_aborted, "no sealing on 32 bits")
#endif

/* The thread that runs the test looks as if it was killed. */
static void look_killed(bool killed)
{
	if (killed) {
		sigaddset(&current->pending.signal, SIGKILL);
		set_tsk_thread_flag(current, TIF_SIGPENDING);
	} else {
		sigdelset(&current->pending.signal, SIGKILL);
		clear_tsk_thread_flag(current, TIF_SIGPENDING);
	}
}

/* Who moves several and has been killed gives up while nothing has been changed. */
static void killed_give_up(struct kunit *test)
{
	struct mremap_op *op = new_op(test, request(0, 4, 4, MAYMOVE | FIXED, 0));
	int err;

	add_dst_range(op, DST_AT, DST_AT + PAGES(4));
	op->nr_moves = 2;
	mmap_write_lock(op->mm);
	look_killed(true);
	err = check_dst_ranges(op);
	look_killed(false);
	KUNIT_EXPECT_EQ(test, err, -EINTR);
	KUNIT_EXPECT_EQ(test, check_dst_ranges(op), 0);
	mmap_write_unlock(op->mm);
	close_space(test);
}

/*
 * A move of several is given up when the first is to move. What is left in memory
 * of an earlier call must not be taken for moves that have begun.
 */
static void moves_that_never_began_stay(struct kunit *test)
{
	struct mremap_op *op = new_op(test, request(0, 8, 8, MAYMOVE | FIXED, 0));
	unsigned int i;
	int err;

	map_at(test, SRC_AT, PAGES(4), RW);
	map_at(test, SRC_AT + PAGES(4), PAGES(4), RWX);
	for (i = 0; i < 8; i++)
		stamp(test, SRC_AT + PAGES(i));

	mmap_write_lock(op->mm);
	KUNIT_EXPECT_EQ(test, plan_moves(op), 0);
	place_moves(op, DST_AT);
	for (i = 0; i < op->nr_moves; i++)
		memset(&op->moves[i].tables, 0xa5, sizeof(op->moves[i].tables));
	init_moves(op);
	KUNIT_EXPECT_EQ(test, prepare_move(op), 0);
	KUNIT_EXPECT_EQ(test, copy_sources(op), 0);
	look_killed(true);
	err = move_all_pages(op);
	look_killed(false);
	KUNIT_EXPECT_EQ(test, err, -EINTR);
	revert_move(op);
	mmap_write_unlock(op->mm);
	free_plans(op);

	for (i = 0; i < 8; i++)
		expect_stamp(test, SRC_AT + PAGES(i));
	KUNIT_EXPECT_NULL(test, vma_at(DST_AT));
	close_space(test);
}

/* The last of several grows, and all of it is mapped. */
static void last_of_several_grows(struct kunit *test)
{
	struct mremap_op *op = new_op(test, request(0, 7, 12, MAYMOVE, 0));
	struct vm_area_struct *vma;

	map_at(test, SRC_AT, PAGES(4), RW);
	map_at(test, SRC_AT + PAGES(4), PAGES(4), RWX);
	map_at(test, SRC_AT + PAGES(9), PAGES(4), RW);

	mmap_write_lock(op->mm);
	vma = vma_lookup(op->mm, SRC_AT);
	KUNIT_EXPECT_TRUE(test, has_no_gaps(vma, SRC_AT + PAGES(3)));
	KUNIT_EXPECT_TRUE(test, has_no_gaps(vma, SRC_AT + PAGES(8)));
	KUNIT_EXPECT_FALSE(test, has_no_gaps(vma, SRC_AT + PAGES(9)));
	KUNIT_EXPECT_FALSE(test, has_no_gaps(vma, SRC_AT + PAGES(10)));
	/* It has wrapped. */
	KUNIT_EXPECT_FALSE(test, has_no_gaps(vma, 0));
	KUNIT_EXPECT_FALSE(test, has_no_gaps(vma, PAGES(1)));
	KUNIT_EXPECT_EQ(test, plan_moves(op), 0);
	KUNIT_EXPECT_EQ(test, op->nr_moves, 2);
	plan_lengths(op);
	KUNIT_EXPECT_EQ(test, op->moves->dst_len, PAGES(4));
	KUNIT_EXPECT_EQ(test, last_move(op)->len, PAGES(3));
	KUNIT_EXPECT_EQ(test, last_move(op)->dst_len, PAGES(8));
	KUNIT_EXPECT_EQ(test, check_planned_moves(op), 0);
	last_move(op)->vm_flags |= VM_DONTEXPAND;
	KUNIT_EXPECT_EQ(test, check_planned_moves(op), -EFAULT);
	mmap_write_unlock(op->mm);
	free_plans(op);
	close_space(test);
}

/* Tables may move whole if the VMA can be marked as changed without a lie. */
static void soft_dirty_decides_about_tables(struct kunit *test)
{
	struct vm_area_struct *vma;
	struct vma_move mv = { .dst_len = PAGES(10) };

	if (!IS_ENABLED(CONFIG_MEM_SOFT_DIRTY))
		kunit_skip(test, "needs soft-dirty tracking");
	map_at(test, DST_AT, PAGES(10), RW);
	vma = vma_at(DST_AT);
	mv.dst = vma;
	KUNIT_EXPECT_FALSE(test, needs_soft_dirty_entries(&mv));
	set_vma_flags(test, DST_AT, 0, VM_SOFTDIRTY);
	KUNIT_EXPECT_FALSE(test, needs_soft_dirty_entries(&mv));
	mv.dst_len = PAGES(9);
	KUNIT_EXPECT_TRUE(test, needs_soft_dirty_entries(&mv));

	mmap_write_lock(current->mm);
	mark_soft_dirty(vma);
	mmap_write_unlock(current->mm);
	KUNIT_EXPECT_TRUE(test, vma->vm_flags & VM_SOFTDIRTY);
	KUNIT_EXPECT_FALSE(test, needs_soft_dirty_entries(&mv));
	close_space(test);
}

static struct kunit_case vma_tests[] = {
	KUNIT_CASE(shrinkage_is_checked),
	KUNIT_CASE_PARAM(resize_is_checked, resize_gen_params),
	KUNIT_CASE(addition_is_surveyed),
	KUNIT_CASE_PARAM(limits_are_checked, limit_gen_params),
	KUNIT_CASE_PARAM(ledger_balances, ledger_gen_params),
	KUNIT_CASE(unmappings_are_aborted),
	KUNIT_CASE(killed_give_up),
	KUNIT_CASE(moves_that_never_began_stay),
	KUNIT_CASE(last_of_several_grows),
	KUNIT_CASE(soft_dirty_decides_about_tables),
	{}
};

static struct kunit_suite vma_suite = {
	.name = "mremap_vmas",
	.init = space_init,
	.exit = space_exit,
	.test_cases = vma_tests,
};

/* Whole calls, on mappings of a driver that may refuse */

static struct test_driver {
	unsigned long refused;		/* address that it does not move to */
	unsigned long unsplittable;	/* address that it does not split at */
	bool is_told;			/* wants to be asked */
	unsigned int asked;
	int map_count;			/* when a mapping was made last */
} driver;

static vm_fault_t driver_fault(struct vm_fault *vmf)
{
	get_page(ZERO_PAGE(0));
	vmf->page = ZERO_PAGE(0);
	return 0;
}

static int driver_may_split(struct vm_area_struct *vma, unsigned long addr)
{
	return addr == driver.unsplittable ? -EINVAL : 0;
}

static int driver_mremap(struct vm_area_struct *vma)
{
	driver.asked++;
	return vma->vm_start == driver.refused ? -EXDEV : 0;
}

static void driver_open(struct vm_area_struct *vma)
{
	driver.map_count = vma->vm_mm->map_count;
}

/* A mapping with this is never merged: a split that is not needed would stay. */
static void driver_close(struct vm_area_struct *vma)
{
}

static const struct vm_operations_struct driver_vm_ops = {
	.open = driver_open,
	.close = driver_close,
	.fault = driver_fault,
	.may_split = driver_may_split,
};

static const struct vm_operations_struct told_driver_vm_ops = {
	.open = driver_open,
	.close = driver_close,
	.fault = driver_fault,
	.may_split = driver_may_split,
	.mremap = driver_mremap,
};

static int driver_mmap(struct file *file, struct vm_area_struct *vma)
{
	vma->vm_ops = driver.is_told ? &told_driver_vm_ops : &driver_vm_ops;
	return 0;
}

static const struct file_operations driver_fops = {
	.mmap = driver_mmap,
};

#define DRIVER_PAGES	20

/* A private mapping of the driver, with every page written to */
static void map_driver(struct kunit *test, bool is_told)
{
	struct file *file;
	unsigned int i;

	driver = (struct test_driver) { .is_told = is_told };
	file = anon_inode_getfile("[mremap_kunit]", &driver_fops, NULL, O_RDWR);
	KUNIT_ASSERT_FALSE(test, IS_ERR(file));
	map_file_at(test, file, SRC_AT, PAGES(DRIVER_PAGES), RW, MAP_PRIVATE);
	fput(file);
	for (i = 0; i < DRIVER_PAGES; i++)
		stamp(test, SRC_AT + PAGES(i));
}

static void expect_driver_pages(struct kunit *test, unsigned long addr,
				unsigned long first, unsigned long nr)
{
	unsigned long i;

	for (i = 0; i < nr; i++) {
		KUNIT_EXPECT_NOT_NULL(test, page_at(addr + PAGES(i)));
		expect_stamp_of(test, addr + PAGES(i), SRC_AT + PAGES(first + i));
	}
}

/* Moves of a part of the mapping, in pages from SRC_AT */
struct call_case {
	const char *name;
	unsigned long first;
	unsigned long old_len;
	unsigned long new_len;
	unsigned long flags;
	unsigned long dst;		/* in pages from DST_AT */
};

static const struct call_case call_cases[] = {
	{ "all of it", 0, 20, 20, MAYMOVE | FIXED, 0 },
	{ "all of it, to another offset", 0, 20, 20, MAYMOVE | FIXED, 3 },
	{ "the start", 0, 5, 5, MAYMOVE | FIXED, 0 },
	{ "the middle", 5, 5, 5, MAYMOVE | FIXED, 5 },
	{ "the end, growing", 15, 5, 9, MAYMOVE | FIXED, 15 },
	{ "the middle, shrinking", 5, 9, 3, MAYMOVE | FIXED, 0 },
	{ "source stays", 0, 20, 20, MAYMOVE | FIXED | DONTUNMAP, 0 },
	{ "a part of the source stays", 5, 5, 5, MAYMOVE | FIXED | DONTUNMAP, 0 },
};

KUNIT_ARRAY_PARAM_DESC(call, call_cases, name);

static bool is_whole(const struct call_case *c)
{
	return c->new_len == DRIVER_PAGES;
}

static unsigned long call(const struct call_case *c)
{
	const struct mremap_request req = request(c->first, c->old_len, c->new_len,
						  c->flags, c->dst);

	return do_mremap(&req);
}

static void call_is_granted(struct kunit *test)
{
	const struct call_case *c = test->param_value;
	unsigned long dst = DST_AT + PAGES(c->dst);
	unsigned long moved = min(c->old_len, c->new_len);
	unsigned long behind = c->first + c->old_len;
	unsigned long kept = c->flags & DONTUNMAP ? c->old_len : 0;

	map_driver(test, is_whole(c));
	KUNIT_ASSERT_EQ(test, call(c), dst);
	KUNIT_EXPECT_EQ(test, driver.asked, is_whole(c));
	expect_driver_pages(test, dst, c->first, moved);
	expect_driver_pages(test, SRC_AT, 0, c->first);
	expect_driver_pages(test, SRC_AT + PAGES(behind), behind, DRIVER_PAGES - behind);
	KUNIT_EXPECT_NULL(test, page_at(SRC_AT + PAGES(c->first)));
	expect_vma(test, dst, dst + PAGES(c->new_len));
	KUNIT_EXPECT_EQ(test, !!vma_at(SRC_AT + PAGES(c->first)), !!kept);
	KUNIT_EXPECT_EQ(test, current->mm->total_vm,
			DRIVER_PAGES - c->old_len + c->new_len + kept);
	close_space(test);
}

/*
 * Without a driver the VMA itself is found at the new place, unless the source
 * stays; and its page tables are as many as before.
 */
static void mapping_changes_its_place(struct kunit *test)
{
	const struct call_case *c = test->param_value;
	unsigned long dst = DST_AT + PAGES(c->dst), moved = min(c->old_len, c->new_len);
	bool kept = c->flags & DONTUNMAP;
	struct vm_area_struct *vma;
	unsigned long table_bytes;
	unsigned int i;

	map_at(test, SRC_AT, PAGES(DRIVER_PAGES), RW);
	for (i = 0; i < DRIVER_PAGES; i++)
		stamp(test, SRC_AT + PAGES(i));
	vma = vma_at(SRC_AT);
	table_bytes = mm_pgtables_bytes(current->mm);
	KUNIT_ASSERT_EQ(test, call(c), dst);
	for (i = 0; i < DRIVER_PAGES; i++) {
		bool gone = i >= c->first && i < c->first + c->old_len;
		unsigned long addr = SRC_AT + PAGES(i);

		if (gone && i < c->first + moved)
			addr = dst + PAGES(i - c->first);
		else if (gone)
			continue;
		expect_stamp_of(test, addr, SRC_AT + PAGES(i));
	}
	expect_vma(test, dst, dst + PAGES(c->new_len));
	KUNIT_EXPECT_EQ(test, !!vma_at(SRC_AT + PAGES(c->first)), kept);
	KUNIT_EXPECT_EQ(test, current->mm->total_vm,
			DRIVER_PAGES - c->old_len + c->new_len +
			(kept ? c->old_len : 0));
	if (is_whole(c)) {
		KUNIT_EXPECT_EQ(test, vma_at(dst) == vma, !kept);
		if (!kept)
			KUNIT_EXPECT_EQ(test, mm_pgtables_bytes(current->mm), table_bytes);
	}
	close_space(test);
}

static void ignore_vma(struct vm_area_struct *vma)
{
}

static int accept_vma(struct vm_area_struct *vma)
{
	return 0;
}

struct known_case {
	vm_flags_t flags;
	const struct vm_operations_struct ops;
	bool uprobes;
	bool stays;		/* must not change its address */
};

/* Whom others know by its address is copied. */
static void who_is_known_is_not_relocated(struct kunit *test)
{
	static const struct known_case cases[] = {
		{},
		{ .flags = VM_LOCKED | VM_ACCOUNT | VM_SHARED },
		{ .flags = VM_IO, .stays = true },
		{ .flags = VM_DONTEXPAND, .stays = true },
		{ .flags = VM_PFNMAP, .stays = true },
		{ .flags = VM_MIXEDMAP, .stays = true },
		{ .flags = VM_HUGETLB, .stays = true },
		{ .flags = VM_UFFD_MISSING, .stays = true },
		{ .ops = { .open = ignore_vma }, .stays = true },
		{ .ops = { .close = ignore_vma }, .stays = true },
		{ .ops = { .mremap = accept_vma }, .stays = true },
		{ .uprobes = true, .stays = true },
	};
	static struct mm_struct mm;
	struct vm_area_struct vma = { .vm_mm = &mm };
	unsigned int i;

	if (!IS_ENABLED(CONFIG_USERFAULTFD))
		kunit_skip(test, "needs CONFIG_USERFAULTFD");
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		const struct known_case *c = &cases[i];

		vm_flags_init(&vma, c->flags);
		vma.vm_ops = &c->ops;
		mm.flags = c->uprobes ? BIT(MMF_HAS_UPROBES) : 0;
		KUNIT_EXPECT_EQ_MSG(test, can_relocate_vma(&vma), !c->stays, "case %u", i);
		KUNIT_EXPECT_EQ_MSG(test, needs_no_unmapping(&vma),
				    !c->uprobes && c->flags != VM_HUGETLB,
				    "case %u", i);
	}
}

/* What maps devices is copied: its tables are flushed one by one. */
static void special_mapping_is_copied(struct kunit *test)
{
	const struct call_case whole = {
		.old_len = DRIVER_PAGES, .new_len = DRIVER_PAGES,
		.flags = MAYMOVE | FIXED,
	};
	struct vm_area_struct *vma;

	map_at(test, SRC_AT, PAGES(DRIVER_PAGES), RW);
	stamp(test, SRC_AT);
	set_vma_flags(test, SRC_AT, VM_DONTEXPAND, 0);
	vma = vma_at(SRC_AT);
	KUNIT_ASSERT_EQ(test, call(&whole), DST_AT);
	KUNIT_EXPECT_PTR_NE(test, vma_at(DST_AT), vma);
	expect_stamp_of(test, DST_AT, SRC_AT);
	close_space(test);
}

/*
 * The driver is asked when all has moved: then all has to go back. It is not
 * asked for a part, which would look to it like the whole.
 */
static void refused_call_changes_nothing(struct kunit *test)
{
	const struct call_case *c = test->param_value;
	unsigned long dst = DST_AT + PAGES(c->dst);
	unsigned long table_bytes, hiwater;

	map_driver(test, true);
	table_bytes = mm_pgtables_bytes(current->mm);
	hiwater = current->mm->hiwater_vm;
	driver.refused = dst;
	KUNIT_EXPECT_EQ(test, call(c), is_whole(c) ? -EXDEV : -EINVAL);
	KUNIT_EXPECT_EQ(test, driver.asked, is_whole(c));
	KUNIT_EXPECT_NULL(test, vma_at(dst));
	KUNIT_EXPECT_EQ(test, current->mm->map_count, 1);
	expect_vma(test, SRC_AT, SRC_AT + PAGES(DRIVER_PAGES));
	expect_driver_pages(test, SRC_AT, 0, DRIVER_PAGES);
	KUNIT_EXPECT_EQ(test, current->mm->total_vm, DRIVER_PAGES);
	KUNIT_EXPECT_EQ(test, current->mm->data_vm, DRIVER_PAGES);
	KUNIT_EXPECT_EQ(test, current->mm->hiwater_vm, hiwater);
	KUNIT_EXPECT_EQ(test, mm_pgtables_bytes(current->mm), table_bytes);
	expect_rmap(test, page_at(SRC_AT), SRC_AT);

	/* And it can be made again. */
	driver.refused = 0;
	if (is_whole(c)) {
		KUNIT_EXPECT_EQ(test, call(c), dst);
		expect_driver_pages(test, dst, 0, DRIVER_PAGES);
	}
	close_space(test);
}

/* What was taken off for unmapping, of this and of another mapping, is put back. */
static void refused_sources_are_put_back(struct kunit *test)
{
	const struct mremap_request req = request(0, DRIVER_PAGES + 5, DRIVER_PAGES,
						  MAYMOVE | FIXED, 0);
	const unsigned long above = SRC_AT + PAGES(DRIVER_PAGES);

	map_driver(test, true);
	map_at(test, above, PAGES(5), RW);
	stamp(test, above);
	driver.refused = DST_AT;
	KUNIT_EXPECT_EQ(test, do_mremap(&req), -EXDEV);
	KUNIT_ASSERT_NOT_NULL(test, vma_at(SRC_AT));
	KUNIT_ASSERT_NOT_NULL(test, vma_at(above));
	KUNIT_EXPECT_FALSE(test, is_marked_detached(SRC_AT));
	KUNIT_EXPECT_FALSE(test, is_marked_detached(above));
	expect_driver_pages(test, SRC_AT, 0, DRIVER_PAGES);
	expect_stamp(test, above);
	close_space(test);
}

/* Where a driver does not split, it is asked before anything changes. */
static void unsplittable_is_left_alone(struct kunit *test)
{
	struct mremap_request req = request(5, 10, 5, MAYMOVE | FIXED, 0);
	unsigned long at;

	map_driver(test, false);
	map_at(test, DST_AT, PAGES(5), RW);
	stamp(test, DST_AT);
	/* All places where this call splits */
	for (at = 5; at <= 15; at += 5) {
		driver.unsplittable = SRC_AT + PAGES(at);
		KUNIT_EXPECT_EQ(test, do_mremap(&req), -EINVAL);
	}
	driver.unsplittable = SRC_AT + PAGES(10);
	req.flags = 0;
	KUNIT_EXPECT_EQ(test, do_mremap(&req), -EINVAL);
	/* The other end of what moves, where nothing is dropped */
	req.old_len = req.new_len;
	req.flags = MAYMOVE | FIXED;
	KUNIT_EXPECT_EQ(test, do_mremap(&req), -EINVAL);
	/* Where the old destination is cut */
	req.addr = DST_AT;
	req.old_len = PAGES(5);
	req.new_addr = SRC_AT + PAGES(3);
	for (at = 3; at <= 8; at += 5) {
		driver.unsplittable = SRC_AT + PAGES(at);
		KUNIT_EXPECT_EQ(test, do_mremap(&req), -EINVAL);
	}

	KUNIT_EXPECT_EQ(test, driver.asked, 0);
	KUNIT_EXPECT_EQ(test, current->mm->map_count, 2);
	expect_driver_pages(test, SRC_AT, 0, DRIVER_PAGES);
	expect_stamp(test, DST_AT);
	close_space(test);
}

/* A driver that may refuse does not move with others. */
static void driver_moves_alone(struct kunit *test)
{
	const struct mremap_request req = request(0, DRIVER_PAGES + 2, DRIVER_PAGES + 2,
						  MAYMOVE | FIXED, 0);

	map_driver(test, true);
	map_at(test, SRC_AT + PAGES(DRIVER_PAGES), PAGES(2), RW);
	stamp(test, SRC_AT + PAGES(DRIVER_PAGES));
	KUNIT_EXPECT_EQ(test, do_mremap(&req), -EFAULT);
	KUNIT_EXPECT_EQ(test, driver.asked, 0);
	KUNIT_EXPECT_EQ(test, current->mm->map_count, 2);
	expect_driver_pages(test, SRC_AT, 0, DRIVER_PAGES + 1);
	close_space(test);
}

/* Where the kernel's own mappings are, as they were told */
static struct {
	unsigned long refused;
	unsigned int nr;
	unsigned long places[4];
} special;

static int special_mremap(const struct vm_special_mapping *sm, struct vm_area_struct *vma)
{
	if (special.nr < ARRAY_SIZE(special.places))
		special.places[special.nr] = vma->vm_start;
	special.nr++;
	return vma->vm_start == special.refused ? -EXDEV : 0;
}

static const struct vm_special_mapping special_mapping = {
	.name = "[mremap_kunit]",
	.mremap = special_mremap,
};

static void map_special(struct kunit *test, unsigned long addr)
{
	struct vm_area_struct *vma;

	mmap_write_lock(current->mm);
	vma = _install_special_mapping(current->mm, addr, PAGES(1),
				       VM_READ | VM_MAYREAD, &special_mapping);
	mmap_write_unlock(current->mm);
	KUNIT_ASSERT_FALSE(test, IS_ERR(vma));
}

/* The kernel's own mappings move with others. If one refuses, all are told again. */
static void special_mappings_are_told_back(struct kunit *test)
{
	const struct mremap_request req = request(0, 2, 2, MAYMOVE | FIXED, 0);

	special.nr = 0;
	special.refused = DST_AT + PAGES(1);
	map_special(test, SRC_AT);
	map_special(test, SRC_AT + PAGES(1));
	KUNIT_EXPECT_EQ(test, do_mremap(&req), -EXDEV);
	KUNIT_EXPECT_EQ(test, special.nr, 3);
	KUNIT_EXPECT_EQ(test, special.places[0], DST_AT);
	KUNIT_EXPECT_EQ(test, special.places[1], DST_AT + PAGES(1));
	KUNIT_EXPECT_EQ(test, special.places[2], SRC_AT);
	expect_vma(test, SRC_AT, SRC_AT + PAGES(1));
	expect_vma(test, SRC_AT + PAGES(1), SRC_AT + PAGES(2));
	KUNIT_EXPECT_NULL(test, vma_at(DST_AT));
	KUNIT_EXPECT_NULL(test, vma_at(DST_AT + PAGES(1)));

	/* And now it may. */
	special.refused = 0;
	KUNIT_EXPECT_EQ(test, do_mremap(&req), DST_AT);
	KUNIT_EXPECT_EQ(test, special.nr, 5);
	close_space(test);
}

/* When the driver hears of the copy, all splits are made; it counts from then on. */
static void call_keeps_to_its_map_budget(struct kunit *test)
{
	struct mremap_request req = request(2, 6, 3, MAYMOVE | FIXED, 2);

	map_driver(test, false);
	map_at(test, DST_AT, PAGES(10), RW);
	KUNIT_EXPECT_EQ(test, do_mremap(&req), req.new_addr);
	KUNIT_EXPECT_EQ(test, driver.map_count + 1, 2 + MAPS_FOR_FORCED_MOVE);
	expect_driver_pages(test, req.new_addr, 2, 3);

	req = request(10, 3, 9, MAYMOVE, 0);
	KUNIT_EXPECT_EQ(test, current->mm->map_count, 5);
	KUNIT_EXPECT_FALSE(test, IS_ERR_VALUE(do_mremap(&req)));
	KUNIT_EXPECT_EQ(test, driver.map_count + 1, 5 + MAPS_FOR_MOVE);
	close_space(test);
}

static void make_table(struct kunit *test, unsigned long addr)
{
	struct mm_struct *mm = current->mm;
	p4d_t *p4d = p4d_alloc(mm, pgd_offset(mm, addr), addr);
	pud_t *pud = p4d ? pud_alloc(mm, p4d, addr) : NULL;
	pmd_t *pmd = pud ? pmd_alloc(mm, pud, addr) : NULL;

	KUNIT_ASSERT_TRUE(test, pmd && !pte_alloc(mm, pmd));
}

/*
 * Two were to be relocated. The first could not go back; the second
 * never left.
 */
static void tables_of_both_places_are_freed(struct kunit *test)
{
	const unsigned long shift = DST_AT - SRC_AT;
	struct vma_move moves[] = {
		{ .addr = SRC_AT, .len = PMD_SIZE },
		{ .addr = SRC_AT + PMD_SIZE, .len = PMD_SIZE },
	};
	struct mremap_op op = {
		.mm = current->mm,
		.moves = moves,
		.nr_moves = ARRAY_SIZE(moves),
	};
	unsigned long tables;

	map_at(test, SRC_AT + PMD_SIZE, PMD_SIZE, RW);
	map_at(test, DST_AT, PMD_SIZE, RW);
	stamp(test, SRC_AT + PMD_SIZE);
	stamp(test, DST_AT);
	tables = mm_pgtables_bytes(op.mm);
	make_table(test, SRC_AT);
	make_table(test, DST_AT + PMD_SIZE);
	KUNIT_EXPECT_EQ(test, mm_pgtables_bytes(op.mm),
			tables + 2 * PTRS_PER_PTE * sizeof(pte_t));

	mmap_write_lock(op.mm);
	free_tables_of_both_places(&op, shift);
	mmap_write_unlock(op.mm);
	KUNIT_EXPECT_EQ(test, mm_pgtables_bytes(op.mm), tables);
	expect_stamp(test, SRC_AT + PMD_SIZE);
	expect_stamp(test, DST_AT);
	close_space(test);
}

/* Both places are of one gap, with the same table above their own. */
static void tables_of_one_gap_are_freed_at_once(struct kunit *test)
{
	const unsigned long shift = 4 * PMD_SIZE;
	struct vma_move move = { .addr = SRC_AT, .len = 2 * PMD_SIZE };
	struct mremap_op op = { .mm = current->mm, .moves = &move, .nr_moves = 1 };
	unsigned long tables = mm_pgtables_bytes(op.mm);

	make_table(test, SRC_AT);
	make_table(test, SRC_AT + shift + PMD_SIZE);
	mmap_write_lock(op.mm);
	free_tables_of_both_places(&op, shift);
	mmap_write_unlock(op.mm);
	KUNIT_EXPECT_EQ(test, mm_pgtables_bytes(op.mm), tables);
	close_space(test);
}

static struct kunit_case call_tests[] = {
	KUNIT_CASE_PARAM(call_is_granted, call_gen_params),
	KUNIT_CASE_PARAM(mapping_changes_its_place, call_gen_params),
	KUNIT_CASE(who_is_known_is_not_relocated),
	KUNIT_CASE(special_mapping_is_copied),
	KUNIT_CASE(tables_of_both_places_are_freed),
	KUNIT_CASE(tables_of_one_gap_are_freed_at_once),
	KUNIT_CASE_PARAM(refused_call_changes_nothing, call_gen_params),
	KUNIT_CASE(refused_sources_are_put_back),
	KUNIT_CASE(unsplittable_is_left_alone),
	KUNIT_CASE(driver_moves_alone),
	KUNIT_CASE(special_mappings_are_told_back),
	KUNIT_CASE(call_keeps_to_its_map_budget),
	{}
};

static struct kunit_suite call_suite = {
	.name = "mremap_calls",
	.init = space_init,
	.exit = space_exit,
	.test_cases = call_tests,
};

kunit_test_suites(&request_suite, &vma_suite, &call_suite);
