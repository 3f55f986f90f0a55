// SPDX-License-Identifier: GPL-2.0
/*
 * A table of mremap(2) calls that are refused, and the errno of each. After
 * the call nothing has changed: not the layout, the contents or the counters.
 *
 * The errno is that of stock 6.12, also where a call has two faults, except in
 * the rows that say .base or .base_changes. These are all deliberate
 * differences, of two kinds:
 *
 *  - Stock unmaps the destination of MREMAP_FIXED, and the tail of a mapping
 *    that shrinks on the way, before it looks at the rest of the request.
 *    Here a refused call leaves both alone.
 *  - Stock looks at the huge page alignment of a new address that was not
 *    given. Here the argument is ignored unless a flag makes it count.
 *
 * Moves of several mappings to a place that is given, at the same length, have
 * tests of their own, in mremap_multi.
 *
 * With MREMAP_EXPECT=base the table expects stock's behaviour in these rows, and
 * tests whose name ends in _mended are skipped. Stock 7.3, which looks at most of
 * the arguments and at the number of mappings before it knows the mapping, is told
 * by its version; .base_7 is its errno.
 *
 * A page offset that overflows (EINVAL) has no row: 64 bits are enough for
 * every offset that can be mapped.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "mremap_util.h"

/* The table is laid out for these; both are checked. */
#define P	4096UL
#define H	(2 * MB)

#define LEN	(8 * P)
#define SRC	(WINDOW + 16 * MB)
#define DST	(WINDOW + 64 * MB)
#define FREE	(WINDOW + 32 * MB)
#define WHOLE	(WINDOW + 24 * MB)
#define FILL	(WINDOW + 4 * GB)

#define SRC_ID	1
#define DST_ID	1000
#define WHOLE_ID 2000

/*
 * All stages: LEN bytes at SRC between two guard pages, LEN bytes at DST with
 * free space above. Unless said otherwise both are touched anonymous memory.
 */
enum stage {
	ANON,
	MEMFD_SHARED,
	MEMFD_PRIVATE,
	TWO_VMAS,	/* the second half of the source is read-only */
	GAP,		/* the second half of the source is missing */
	SEALED,
	SEALED_TAIL,	/* as TWO_VMAS, and the second one is sealed */
	SEALED_DST,	/* the second half of the destination is sealed */
	LOCKED,		/* the source is locked, and that is the limit */
	LOCKED_AS,	/* and so it is for the address space */
	LIMIT_AS,
	LIMIT_DATA,
	MAP_COUNT,	/* not one mapping more */
	HUGETLB,	/* the source is two private huge pages */
	HUGETLB_SHARED,
	HUGETLB_FILE,	/* of a file that is sealed against growth */
	VDSO,		/* the source is the vDSO: it can neither grow nor split */
	VDSO_OF_PAGES,	/* and it is longer than a page */
	UNSPLITTABLE,	/* two huge pages are mapped at WHOLE, LEN below them */
};

FIXTURE(call)
{
	unsigned long src;	/* what stands for SRC in the row */
};

FIXTURE_VARIANT(call)
{
	enum stage stage;
	unsigned long addr;
	unsigned long old_len;
	unsigned long new_len;
	unsigned long flags;
	unsigned long new_addr;
	int err;
	int base;		/* stock's errno, if it is another one; -1: keep off */
	int base_7;		/* the same for 7.x, if that is yet another one */
	bool base_changes;
	bool base_7_mended;	/* only 6.12 does that */
};

#define ROW(name, stage_, addr_, old_len_, new_len_, flags_, new_addr_, err_, ...) \
	FIXTURE_VARIANT_ADD(call, name) {				\
		.stage = stage_,					\
		.addr = addr_,						\
		.old_len = old_len_,					\
		.new_len = new_len_,					\
		.flags = flags_,					\
		.new_addr = new_addr_,					\
		.err = err_,						\
		__VA_ARGS__						\
	}
/* Stock has changed something before it refuses. */
#define DESTROYS	.base_changes = true
#define DESTROYS_6	DESTROYS, .base_7_mended = true

/* ---- the arguments by themselves ---- */

ROW(unknown_flag, ANON, SRC, LEN, LEN, 8, 0, EINVAL);
ROW(unknown_flag_with_known, ANON, SRC, LEN, LEN, FIXED | 16, DST, EINVAL);
ROW(unknown_flag_beside_known, ANON, SRC, LEN, LEN, FIXED | 64, DST, EINVAL);
ROW(unknown_flag_above_32_bits, ANON, SRC, LEN, LEN, 1UL << 32, 0, EINVAL);
ROW(fixed_alone, ANON, SRC, LEN, LEN, MREMAP_FIXED, DST, EINVAL);
ROW(dontunmap_alone, ANON, SRC, LEN, LEN, MREMAP_DONTUNMAP, 0, EINVAL);
ROW(dontunmap_fixed_alone, ANON, SRC, LEN, LEN, MREMAP_DONTUNMAP | MREMAP_FIXED, DST, EINVAL);
ROW(dontunmap_shrink, ANON, SRC, LEN, LEN - P, DONTUNMAP, 0, EINVAL);
ROW(dontunmap_same_pages_not_bytes, ANON, SRC, LEN, LEN - 1, DONTUNMAP, 0, EINVAL, .base_7 = -1);
ROW(dontunmap_duplicate, MEMFD_SHARED, SRC, 0, LEN, DONTUNMAP, 0, EINVAL);
ROW(overlap_alone, ANON, SRC, LEN, LEN, MREMAP_OVERLAP, 0, EINVAL);
ROW(overlap_may_move, ANON, SRC, LEN, LEN, MREMAP_MAYMOVE | MREMAP_OVERLAP, 0, EINVAL);
ROW(overlap_fixed_alone, ANON, SRC, LEN, LEN, MREMAP_FIXED | MREMAP_OVERLAP, SRC + P, EINVAL);
ROW(overlap_dontunmap, ANON, SRC, LEN, LEN, OVERLAP | MREMAP_DONTUNMAP, DST, EINVAL);
ROW(addr_unaligned, ANON, SRC + 1, LEN, LEN, 0, 0, EINVAL);
ROW(addr_unaligned_fixed, ANON, SRC + 8, P, P, FIXED, DST, EINVAL);
ROW(new_len_zero, ANON, SRC, LEN, 0, 0, 0, EINVAL);
ROW(new_len_zero_fixed, ANON, SRC, LEN, 0, FIXED, DST, EINVAL);
ROW(new_len_wraps_to_zero, ANON, SRC, LEN, -1UL, MREMAP_MAYMOVE, 0, EINVAL);
ROW(dontunmap_both_zero, ANON, SRC, 0, 0, DONTUNMAP, 0, EINVAL);
/* Rounding up makes it 0, and a private mapping is not duplicated. */
ROW(old_len_wraps_to_zero, ANON, SRC, -1UL, LEN, MREMAP_MAYMOVE, 0, EINVAL);
ROW(old_len_huge, ANON, SRC, -P, LEN, 0, 0, EINVAL);
ROW(old_len_huge_fixed, ANON, SRC, -P, LEN, FIXED, DST, EINVAL, DESTROYS);
/* What is to be dropped starts at the guard page below the source. */
ROW(dropped_wraps, ANON, SRC + P, -P, -2 * P, 0, 0, EINVAL, .base = -1, .base_7 = EINVAL);

/* ---- the destination ---- */

ROW(new_addr_unaligned, ANON, SRC, LEN, LEN, FIXED, DST + 1, EINVAL);
ROW(new_addr_unaligned_hint, ANON, SRC, LEN, LEN, DONTUNMAP, FREE + 1, EINVAL);
ROW(new_addr_no_user_address, ANON, SRC, LEN, LEN, FIXED, 1UL << 63, EINVAL);
ROW(new_addr_range_wraps, ANON, SRC, LEN, LEN, FIXED, -P, EINVAL);
ROW(new_len_over_address_space, ANON, SRC, LEN, -P, FIXED, DST, EINVAL);
ROW(overlap_itself, ANON, SRC, LEN, LEN, FIXED, SRC, EINVAL);
ROW(overlap_tail, ANON, SRC, LEN, LEN, FIXED, SRC + LEN - P, EINVAL);
ROW(overlap_head, ANON, SRC, LEN, LEN, FIXED, SRC - LEN + P, EINVAL);
ROW(overlap_inside, ANON, SRC, LEN, P, FIXED, SRC + P, EINVAL);
ROW(overlap_around, ANON, SRC + P, P, LEN, FIXED, SRC, EINVAL);
ROW(overlap_by_growth, ANON, SRC + 4 * P, P, 4 * P, FIXED, SRC + P, EINVAL);
/* With leave to overlap, of which stock does not know. */
ROW(overlap_grow, ANON, SRC, LEN, LEN + P, OVERLAP, SRC + P, EINVAL);
ROW(overlap_shrink, ANON, SRC, LEN, LEN - P, OVERLAP, SRC + P, EINVAL);
ROW(overlap_duplicate, MEMFD_SHARED, SRC + P, 0, LEN, OVERLAP, SRC, EINVAL);
ROW(overlap_unaligned, ANON, SRC, LEN, LEN, OVERLAP, SRC + 1, EINVAL);
ROW(overlap_nothing, ANON, FREE, LEN, LEN, OVERLAP, FREE + P, EFAULT, .base = EINVAL);
ROW(overlap_sealed, SEALED, SRC, LEN, LEN, OVERLAP, SRC + P, EPERM, .base = EINVAL);
ROW(overlap_sealed_itself, SEALED, SRC, LEN, LEN, OVERLAP, SRC, EPERM, .base = EINVAL);
ROW(overlap_hugetlb, HUGETLB, SRC, 2 * H, 2 * H, OVERLAP, SRC + H, EINVAL);
ROW(overlap_hugetlb_itself, HUGETLB, SRC, 2 * H, 2 * H, OVERLAP, SRC, EINVAL);
ROW(overlap_vdso, VDSO_OF_PAGES, SRC, 2 * P, 2 * P, OVERLAP, SRC + P, EINVAL);
ROW(overlap_map_count, MAP_COUNT, SRC, LEN, LEN, OVERLAP, SRC + P, ENOMEM, .base = EINVAL);
ROW(overlap_dontunmap_hint, ANON, SRC, LEN, LEN, DONTUNMAP, SRC, EINVAL);

/* ---- the source ---- */

ROW(source_unmapped, ANON, FREE, LEN, LEN, 0, 0, EFAULT);
ROW(source_unmapped_grow, ANON, FREE, LEN, 2 * LEN, MREMAP_MAYMOVE, 0, EFAULT);
ROW(source_unmapped_shrink, ANON, FREE, LEN, P, 0, 0, EFAULT);
ROW(source_unmapped_fixed, ANON, FREE, LEN, LEN, FIXED, DST, EFAULT);
ROW(source_unmapped_dontunmap, ANON, FREE, LEN, LEN, DONTUNMAP, 0, EFAULT);
ROW(source_null, ANON, 0, LEN, LEN, MREMAP_MAYMOVE, 0, EFAULT);
ROW(source_no_user_address, ANON, 1UL << 63, LEN, LEN, MREMAP_MAYMOVE, 0, EFAULT);
ROW(source_starts_in_gap, GAP, SRC + 5 * P, P, P, FIXED, DST, EFAULT);
ROW(source_ends_in_gap_grow, GAP, SRC, LEN, 2 * LEN, MREMAP_MAYMOVE, 0, EFAULT);
ROW(source_ends_in_gap_move_grow, GAP, SRC, LEN, 2 * LEN, FIXED, DST, EFAULT, DESTROYS_6);
ROW(two_vmas_grow_in_place, TWO_VMAS, SRC, LEN, 2 * LEN, 0, 0, EFAULT);
ROW(beyond_the_mapping, ANON, SRC, LEN + 2 * P, 2 * LEN, MREMAP_MAYMOVE, 0, EFAULT);
ROW(beyond_the_end_of_all, ANON, SRC, -2 * P, -P, MREMAP_MAYMOVE, 0, EFAULT, .base_7 = EINVAL);
ROW(beyond_the_mapping_fixed, ANON, SRC, LEN + 2 * P, LEN + 3 * P, FIXED, DST, EFAULT,
    DESTROYS_6);
/* Nothing to do is done without a look at the length. */
ROW(beyond_the_mapping_same_size, ANON, SRC, 2 * LEN, 2 * LEN, MREMAP_MAYMOVE, 0, 0);

/* ---- duplication ---- */

ROW(duplicate_private, ANON, SRC, 0, LEN, MREMAP_MAYMOVE, 0, EINVAL);
ROW(duplicate_private_in_place, ANON, SRC, 0, LEN, 0, 0, EINVAL);
ROW(duplicate_private_fixed, ANON, SRC, 0, LEN, FIXED, DST, EINVAL, DESTROYS_6);
ROW(duplicate_private_file, MEMFD_PRIVATE, SRC, 0, LEN, MREMAP_MAYMOVE, 0, EINVAL);
ROW(duplicate_in_place, MEMFD_SHARED, SRC, 0, LEN, 0, 0, ENOMEM);
/* A second view in the place of the first: there would be none to copy. */
ROW(duplicate_onto_itself, MEMFD_SHARED, SRC, 0, LEN, FIXED, SRC, EFAULT, DESTROYS);
ROW(duplicate_onto_itself_longer, MEMFD_SHARED, SRC, 0, 2 * LEN, FIXED, SRC, EFAULT, DESTROYS);
ROW(duplicate_onto_itself_inside, MEMFD_SHARED, SRC + P, 0, P, FIXED, SRC + P, EFAULT, DESTROYS);
ROW(duplicate_onto_itself_private, ANON, SRC, 0, LEN, FIXED, SRC, EFAULT, DESTROYS_6,
    .base_7 = EINVAL);

/* ---- growing where it cannot ---- */

ROW(grow_blocked, ANON, SRC, LEN, LEN + P, 0, 0, ENOMEM);
ROW(grow_front_part_in_place, ANON, SRC, P, 2 * P, 0, 0, ENOMEM);
ROW(grow_blocked_shared, MEMFD_SHARED, SRC, LEN, LEN + P, 0, 0, ENOMEM);
ROW(grow_over_address_space, ANON, SRC, LEN, 1UL << 62, MREMAP_MAYMOVE, 0, ENOMEM,
    .base_7 = EINVAL);
ROW(grow_over_memory, ANON, SRC, LEN, 1UL << 40, MREMAP_MAYMOVE, 0, ENOMEM);
ROW(grow_over_memory_fixed, ANON, SRC, LEN, 1UL << 40, FIXED, DST, ENOMEM, DESTROYS);
ROW(grow_over_memory_in_place, ANON, DST, LEN, 1UL << 40, 0, 0, ENOMEM);

/* ---- limits ---- */

ROW(limit_as_grow, LIMIT_AS, SRC, LEN, LEN + P, MREMAP_MAYMOVE, 0, ENOMEM);
ROW(limit_as_grow_in_place, LIMIT_AS, DST, LEN, LEN + P, 0, 0, ENOMEM);
ROW(limit_as_grow_fixed, LIMIT_AS, SRC, LEN, 4 * LEN, FIXED, DST, ENOMEM, DESTROYS_6);
ROW(limit_as_dontunmap, LIMIT_AS, SRC, LEN, LEN, DONTUNMAP, 0, ENOMEM);
ROW(limit_as_duplicate, LIMIT_AS, SRC, 0, LEN, MREMAP_MAYMOVE, 0, EINVAL);
ROW(limit_data_grow, LIMIT_DATA, SRC, LEN, LEN + P, MREMAP_MAYMOVE, 0, ENOMEM);
ROW(limit_data_grow_in_place, LIMIT_DATA, DST, LEN, LEN + P, 0, 0, ENOMEM);
ROW(limit_data_grow_fixed, LIMIT_DATA, SRC, LEN, 4 * LEN, FIXED, DST, ENOMEM, DESTROYS_6);
ROW(limit_data_dontunmap, LIMIT_DATA, SRC, LEN, LEN, DONTUNMAP, 0, ENOMEM);
ROW(limit_memlock_grow, LOCKED, SRC, LEN, LEN + P, MREMAP_MAYMOVE, 0, EAGAIN);
ROW(limit_memlock_grow_in_place, LOCKED, SRC, LEN, LEN + P, 0, 0, EAGAIN);
ROW(limit_memlock_grow_fixed, LOCKED, SRC, LEN, LEN + P, FIXED, DST, EAGAIN, DESTROYS_6);
ROW(map_count_fixed, MAP_COUNT, SRC, LEN, LEN, FIXED, FREE, ENOMEM);
ROW(map_count_fixed_over, MAP_COUNT, SRC, LEN, LEN, FIXED, DST, ENOMEM);
ROW(map_count_dontunmap, MAP_COUNT, SRC, LEN, LEN, DONTUNMAP, 0, ENOMEM);
ROW(map_count_grow, MAP_COUNT, SRC, LEN, 2 * LEN, MREMAP_MAYMOVE, 0, ENOMEM);
ROW(map_count_shrink_middle, MAP_COUNT, SRC, 4 * P, P, 0, 0, ENOMEM);

/* ---- seals ---- */

ROW(sealed_move, SEALED, SRC, LEN, LEN, FIXED, DST, EPERM);
ROW(sealed_grow, SEALED, SRC, LEN, 2 * LEN, MREMAP_MAYMOVE, 0, EPERM);
ROW(sealed_shrink, SEALED, SRC, LEN, P, 0, 0, EPERM);
ROW(sealed_dontunmap, SEALED, SRC, LEN, LEN, DONTUNMAP, 0, EPERM);
ROW(sealed_same_size, SEALED, SRC, LEN, LEN, 0, 0, EPERM);
ROW(sealed_destination, SEALED_DST, SRC, LEN, LEN, FIXED, DST, EPERM);
ROW(sealed_destination_part, SEALED_DST, SRC, LEN, LEN, FIXED, DST - P, EPERM);
/* Stock has split the first mapping before it comes to the sealed one. */
ROW(sealed_tail_shrink, SEALED_TAIL, SRC, LEN, P, 0, 0, EPERM, DESTROYS);
ROW(sealed_tail_move_shrink, SEALED_TAIL, SRC, LEN, P, FIXED, DST, EPERM, DESTROYS);

/* ---- huge pages ---- */

ROW(hugetlb_addr_unaligned, HUGETLB, SRC + P, H, H, MREMAP_MAYMOVE, 0, EINVAL);
ROW(hugetlb_new_addr_unaligned, HUGETLB, SRC, H, H, FIXED, DST + P, EINVAL);
ROW(hugetlb_hint_unaligned, HUGETLB, SRC, H, H, DONTUNMAP, FREE + P, EINVAL);
ROW(hugetlb_grow_blocked, HUGETLB, SRC, 2 * H, 3 * H, 0, 0, ENOMEM, .base = EINVAL);
ROW(hugetlb_grow_blocked_shared, HUGETLB_SHARED, SRC, 2 * H, 3 * H, 0, 0, ENOMEM, .base = EINVAL);
/* As munmap() does not round, either. */
ROW(hugetlb_grow_to_no_whole, HUGETLB, SRC, 2 * H, 3 * H - P, MREMAP_MAYMOVE, 0, EINVAL);
ROW(hugetlb_grow_to_no_whole_fixed, HUGETLB, SRC, 2 * H, 2 * H + P, FIXED, DST, EINVAL);
ROW(hugetlb_grow_to_no_whole_in_place, HUGETLB, SRC, H, H + P, 0, 0, EINVAL);
/* A private mapping has reservations only as a whole. */
ROW(hugetlb_grow_part_fixed, HUGETLB, SRC, H, 3 * H, FIXED, DST, EINVAL);
ROW(hugetlb_grow_part_in_place, HUGETLB, SRC + H, H, 2 * H, 0, 0, EINVAL);
ROW(hugetlb_grow_part_to_any_place, HUGETLB, SRC, H, 2 * H, MREMAP_MAYMOVE, 0, EINVAL);
ROW(hugetlb_grow_dontunmap, HUGETLB, SRC, 2 * H, 3 * H, DONTUNMAP, 0, EINVAL);
/* More than there are. */
ROW(hugetlb_grow_without_pages, HUGETLB, SRC, 2 * H, GB * 4, MREMAP_MAYMOVE, 0, ENOMEM,
    .base = EINVAL);
ROW(hugetlb_grow_without_pages_fixed, HUGETLB, SRC, 2 * H, GB * 4, FIXED, FREE, ENOMEM,
    .base = EINVAL);
ROW(hugetlb_grow_without_pages_shared, HUGETLB_SHARED, SRC, 2 * H, GB * 4,
    MREMAP_MAYMOVE, 0, ENOMEM, .base = EINVAL);
ROW(hugetlb_grow_sealed_file, HUGETLB_FILE, SRC, 2 * H, 3 * H, MREMAP_MAYMOVE, 0, EPERM,
    .base = EINVAL);
ROW(hugetlb_grow_sealed_file_fixed, HUGETLB_FILE, SRC, 2 * H, 3 * H, FIXED, DST, EPERM,
    .base = EINVAL);
ROW(hugetlb_grow_beyond_files, HUGETLB, SRC, 2 * H, 1UL << 63, MREMAP_MAYMOVE, 0, EINVAL);
ROW(hugetlb_duplicate_private, HUGETLB, SRC, 0, H, MREMAP_MAYMOVE, 0, EINVAL);
ROW(hugetlb_duplicate_shared, HUGETLB_SHARED, SRC, 0, H, MREMAP_MAYMOVE, 0, EINVAL);
ROW(hugetlb_beyond_fixed, HUGETLB, SRC, 4 * H, 3 * H, FIXED, DST, EFAULT, DESTROYS_6);
/* Stock rounds these up to 0, and takes the mapping away, or worse. */
ROW(hugetlb_new_len_wraps, HUGETLB, SRC, 2 * H, -P, MREMAP_MAYMOVE, 0, EINVAL,
    .base = -1, .base_7 = EINVAL);
ROW(hugetlb_new_len_wraps_fixed, HUGETLB, SRC, 2 * H, -P, FIXED, DST, EINVAL,
    .base = -1, .base_7 = EINVAL);
ROW(hugetlb_new_len_wraps_shared, HUGETLB_SHARED, SRC, 2 * H, -P, FIXED, DST, EINVAL,
    .base = -1, .base_7 = EINVAL);
ROW(hugetlb_both_wrap, HUGETLB_SHARED, SRC, -P, -2 * P, FIXED, DST, EINVAL, .base = -1,
    .base_7 = EINVAL);
ROW(hugetlb_new_addr_not_given, HUGETLB, SRC, 2 * H, 2 * H, 0, P, 0, .base = EINVAL);
ROW(hugetlb_new_addr_not_given_maymove, HUGETLB, SRC, 2 * H, 2 * H,
    MREMAP_MAYMOVE, 1, 0, .base = EINVAL);
ROW(hugetlb_grow_new_addr_not_given, HUGETLB, SRC, 2 * H, 3 * H, 0, P, ENOMEM, .base = EINVAL);

/* ---- mappings of a fixed size ---- */

ROW(dontexpand_grow, VDSO, SRC, P, 2 * P, MREMAP_MAYMOVE, 0, EFAULT);
ROW(dontexpand_grow_in_place, VDSO, SRC, P, 2 * P, 0, 0, EFAULT);
ROW(dontexpand_grow_fixed, VDSO, SRC, P, 2 * P, FIXED, DST, EFAULT, DESTROYS_6);
ROW(dontexpand_dontunmap, VDSO, SRC, P, P, DONTUNMAP, 0, EINVAL);
ROW(dontexpand_dontunmap_fixed, VDSO, SRC, P, P, FIXED | DONTUNMAP, DST, EINVAL, DESTROYS_6);
ROW(unsplittable_part, VDSO_OF_PAGES, SRC, P, P, FIXED, DST, EINVAL, DESTROYS);
ROW(unsplittable_shrink, VDSO_OF_PAGES, SRC, 2 * P, P, 0, 0, EINVAL);

/* A huge page in the way, or in what is dropped, would have to be cut. */
ROW(unsplittable_destination, UNSPLITTABLE, SRC, LEN, LEN, FIXED, WHOLE + P, EINVAL);
ROW(unsplittable_destination_start, UNSPLITTABLE, SRC, LEN, LEN, FIXED,
    WHOLE + 2 * H - P, EINVAL);
ROW(unsplittable_destination_end, UNSPLITTABLE, SRC, LEN, LEN, FIXED,
    WHOLE - LEN + P, EINVAL, DESTROYS);
ROW(unsplittable_destination_shrink, UNSPLITTABLE, SRC, LEN, P, FIXED, WHOLE, EINVAL);
ROW(unsplittable_destination_dontunmap, UNSPLITTABLE, SRC, LEN, LEN,
    FIXED | DONTUNMAP, WHOLE - LEN + P, EINVAL, DESTROYS);
ROW(unsplittable_dropped_start, UNSPLITTABLE, WHOLE - LEN, LEN + 2 * H, LEN + P, 0, 0, EINVAL);
ROW(unsplittable_dropped_end, UNSPLITTABLE, WHOLE - LEN, LEN + P, P, 0, 0, EINVAL, DESTROYS);
ROW(unsplittable_dropped_end_move, UNSPLITTABLE, WHOLE - LEN, LEN + P, P, FIXED,
    DST, EINVAL, DESTROYS);

/* ---- two faults at once: which one is told ---- */

ROW(both_flag_and_source, ANON, FREE, LEN, LEN, 8, 0, EINVAL);
ROW(both_fixed_alone_and_source, ANON, FREE, LEN, LEN, MREMAP_FIXED, DST, EINVAL);
ROW(both_addr_unaligned_and_source, ANON, FREE + 1, LEN, LEN, 0, 0, EINVAL);
ROW(both_new_len_zero_and_source, ANON, FREE, LEN, 0, 0, 0, EINVAL);
ROW(both_source_and_new_addr, ANON, FREE, LEN, LEN, FIXED, DST + 1, EFAULT, .base_7 = EINVAL);
ROW(both_source_and_new_range, ANON, FREE, LEN, LEN, FIXED, -P, EFAULT, .base_7 = EINVAL);
ROW(both_source_and_overlap, ANON, FREE, LEN, LEN, FIXED, FREE, EFAULT, .base_7 = EINVAL);
ROW(both_flag_and_seal, SEALED, SRC, LEN, LEN, 8, 0, EINVAL);
ROW(both_seal_and_new_addr, SEALED, SRC, LEN, LEN, FIXED, DST + 1, EPERM, .base_7 = EINVAL);
ROW(both_seal_and_overlap, SEALED, SRC, LEN, LEN, FIXED, SRC, EPERM, .base_7 = EINVAL);
ROW(both_seal_and_duplicate, SEALED, SRC, 0, LEN, MREMAP_MAYMOVE, 0, EPERM);
ROW(both_seal_and_beyond, SEALED, SRC, 2 * LEN, 3 * LEN, MREMAP_MAYMOVE, 0, EPERM);
ROW(both_seal_on_dst_and_new_addr, SEALED_DST, SRC, LEN, LEN, FIXED, DST + 1, EINVAL);
ROW(both_seal_on_dst_and_beyond, SEALED_DST, SRC, 2 * LEN, 2 * LEN, FIXED, DST, EPERM);
ROW(both_seal_on_dst_and_duplicate, SEALED_DST, SRC, 0, LEN, FIXED, DST, EPERM, .base_7 = EINVAL);
ROW(both_overlap_and_beyond, ANON, SRC, 2 * LEN, 2 * LEN, FIXED, SRC + P, EINVAL);
ROW(both_map_count_and_source, MAP_COUNT, FREE, LEN, LEN, FIXED, DST, EFAULT, .base_7 = ENOMEM);
ROW(both_map_count_and_overlap, MAP_COUNT, SRC, LEN, LEN, FIXED, SRC, EINVAL);
ROW(both_map_count_and_beyond, MAP_COUNT, SRC, 2 * LEN, 2 * LEN, FIXED, DST, ENOMEM);
ROW(both_map_count_and_duplicate, MAP_COUNT, SRC, 0, LEN, FIXED, DST, ENOMEM);
ROW(both_map_count_and_duplicate_anywhere, MAP_COUNT, SRC, 0, LEN, MREMAP_MAYMOVE, 0,
    EINVAL, .base_7 = ENOMEM);
ROW(both_memlock_and_beyond, LOCKED, SRC, 2 * LEN, 3 * LEN, MREMAP_MAYMOVE, 0, EFAULT);
ROW(both_memlock_and_as, LOCKED_AS, SRC, LEN, LEN + P, MREMAP_MAYMOVE, 0, EAGAIN);
ROW(both_memlock_and_blocked, LOCKED, SRC, LEN, LEN + P, 0, 0, EAGAIN);
ROW(both_as_and_beyond, LIMIT_AS, SRC, 2 * LEN, 3 * LEN, MREMAP_MAYMOVE, 0, EFAULT);
ROW(both_hugetlb_grow_and_source_beyond, HUGETLB, SRC, 3 * H, 4 * H,
    MREMAP_MAYMOVE, 0, EFAULT, .base = EINVAL);
ROW(both_hugetlb_grow_and_overlap, HUGETLB, SRC, 2 * H, 3 * H, FIXED, SRC, EINVAL);
ROW(both_hugetlb_new_addr_and_beyond, HUGETLB, SRC, 4 * H, 3 * H, FIXED, DST + P, EINVAL);
ROW(both_dontunmap_and_beyond, VDSO, SRC, MB, MB, DONTUNMAP, 0, EINVAL);
ROW(both_dontexpand_and_beyond, VDSO, SRC, MB, 2 * MB, MREMAP_MAYMOVE, 0, EFAULT);

/* ---- stages ---- */

static const char *map_source(FIXTURE_DATA(call) *self, enum stage stage)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;
	size_t len = LEN;
	int fd = -1;

	switch (stage) {
	case HUGETLB_SHARED:
		flags = MAP_SHARED | MAP_ANONYMOUS;
		/* fall through */
	case HUGETLB:
		flags |= MAP_HUGETLB;
		len = 2 * H;
		break;
	case HUGETLB_FILE:
		fd = memfd_create("mremap_errno", MFD_HUGETLB | MFD_ALLOW_SEALING);
		len = 2 * H;
		if (ftruncate(fd, len) || fcntl(fd, F_ADD_SEALS, F_SEAL_GROW))
			return "cannot seal a memfd";
		flags = MAP_SHARED;
		break;
	case MEMFD_SHARED:
	case MEMFD_PRIVATE:
		fd = memfd_create("mremap_errno", 0);
		if (ftruncate(fd, LEN))
			return "cannot size a memfd";
		flags = stage == MEMFD_SHARED ? MAP_SHARED : MAP_PRIVATE;
		break;
	default:
		break;
	}
	self->src = SRC;
	if (map_at(SRC, len, PROT_READ | PROT_WRITE, flags, fd, 0) != SRC)
		return "cannot map the source";
	stamp_range(SRC, LEN, SRC_ID);
	guard_page(SRC - P);
	guard_page(SRC + len);
	return NULL;
}

/* Uses up the mappings the process may have; the last split fails. */
static void fill_map_count(void)
{
	const size_t pages = read_long("/proc/sys/vm/max_map_count");

	map_at(FILL, pages * P, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (size_t page = 1; page < pages; page += 2)
		if (mprotect(at(FILL + page * P), P, PROT_NONE))
			break;
	/* A split makes two mappings: one may be left over, for the end. */
	mprotect(at(FILL + (pages - 1) * P), P, PROT_NONE);
}

/* Never touched, so no huge page is needed. */
static const char *map_unsplittable(void)
{
	map_anon(WHOLE - LEN, LEN);
	stamp_range(WHOLE - LEN, LEN, WHOLE_ID);
	if (map_at(WHOLE, 2 * H, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE, -1, 0) != WHOLE)
		return "needs hugetlb";
	return NULL;
}

static const char *build_stage(FIXTURE_DATA(call) *self, enum stage stage)
{
	const char *why = map_source(self, stage);
	struct vma vdso;

	if (why)
		return why;
	if (map_anon(DST, LEN) != DST)
		return "cannot map the destination";
	stamp_range(DST, LEN, DST_ID);

	switch (stage) {
	case TWO_VMAS:
	case SEALED_TAIL:
		mprotect(at(SRC + LEN / 2), LEN / 2, PROT_READ);
		if (stage == SEALED_TAIL && seal(SRC + LEN / 2, LEN / 2))
			return "needs mseal(2)";
		break;
	case GAP:
		munmap(at(SRC + LEN / 2), LEN / 2);
		break;
	case SEALED:
		if (seal(SRC, LEN))
			return "needs mseal(2)";
		break;
	case SEALED_DST:
		if (seal(DST + LEN / 2, LEN / 2))
			return "needs mseal(2)";
		break;
	case LOCKED:
	case LOCKED_AS:
		if (mlock(at(SRC), LEN))
			return "cannot lock memory";
		break;
	case MAP_COUNT:
		fill_map_count();
		break;
	case VDSO:
	case VDSO_OF_PAGES:
		self->src = getauxval(AT_SYSINFO_EHDR);
		if (!self->src || !find_vma(self->src, &vdso))
			return "needs a vDSO";
		if (stage == VDSO_OF_PAGES && vdso.end - vdso.start == P)
			return "needs a vDSO of several pages";
		break;
	case UNSPLITTABLE:
		return map_unsplittable();
	default:
		break;
	}
	return NULL;
}

static bool set_limit(int resource, unsigned long value)
{
	const struct rlimit limit = { value, value };

	return !setrlimit(resource, &limit);
}

/* Last of all: reading the state has to come before it. */
static bool apply_limits(enum stage stage)
{
	struct counters now;

	read_counters(&now);
	if ((stage == LIMIT_AS || stage == LOCKED_AS) && !set_limit(RLIMIT_AS, now.size * KB))
		return false;
	if (stage == LIMIT_DATA)
		return set_limit(RLIMIT_DATA, now.data * KB);
	if (stage != LOCKED && stage != LOCKED_AS)
		return true;
	/* Who may lock memory anyway is not bound. */
	return set_limit(RLIMIT_MEMLOCK, LEN) && (geteuid() || !setresuid(-1, 1, -1));
}

static bool is_hugetlb(enum stage stage)
{
	return stage == HUGETLB || stage == HUGETLB_SHARED || stage == HUGETLB_FILE;
}

FIXTURE_SETUP(call)
{
	if (psize() != P)
		SKIP(return, "needs pages of %lu bytes", P);
	if ((is_hugetlb(variant->stage) || variant->stage == UNSPLITTABLE) &&
	    default_huge_page_size() != H)
		SKIP(return, "needs huge pages of %lu bytes", H);
	NEED(!is_hugetlb(variant->stage) || get_free_hugepages() >= 2,
	     "needs 2 free huge pages (vm.nr_hugepages)");
	NEED_OK(build_stage(self, variant->stage));
	save_state();
	ASSERT_TRUE(apply_limits(variant->stage));
}

FIXTURE_TEARDOWN(call) { }

static const char *check_contents(enum stage stage)
{
	const size_t source = stage == GAP ? LEN / 2 : LEN;
	const char *why = check_stamps(SRC, source, SRC_ID);

	if (stage == UNSPLITTABLE)
		why = why ?: check_stamps(WHOLE - LEN, LEN, WHOLE_ID);
	return why ?: check_stamps(DST, LEN, DST_ID);
}

static unsigned long make_call(const FIXTURE_DATA(call) *self,
			       const FIXTURE_VARIANT(call) *variant)
{
	const unsigned long addr = variant->addr - SRC + self->src;
	unsigned long new_addr = variant->new_addr;

	/* A new place that is to overlap goes along. */
	if (variant->flags & MREMAP_OVERLAP)
		new_addr += self->src - SRC;
	return do_mremap(addr, variant->old_len, variant->new_len, variant->flags, new_addr);
}

/*
 * Committed_AS is the whole machine's, so a change may be somebody else's. A
 * leak shows in every one of some calls; a call without one is enough.
 */
static const char *check_charge(const FIXTURE_DATA(call) *self,
				const FIXTURE_VARIANT(call) *variant)
{
	for (int try = 0; try < 8; try++) {
		const long before = committed_kb();

		make_call(self, variant);
		if (committed_kb() == before)
			return NULL;
	}
	return "every call changes Committed_AS";
}

static int error_in_row(const FIXTURE_VARIANT(call) *row)
{
	if (expect_base_7() && row->base_7)
		return row->base_7;
	return expect_base() && row->base ? row->base : row->err;
}

static bool stock_changes(const FIXTURE_VARIANT(call) *row)
{
	return expect_base() && row->base_changes && !(expect_base_7() && row->base_7_mended);
}

TEST_F(call, is_refused)
{
	const int err = error_in_row(variant);
	unsigned long ret;

	NEED(err >= 0, "stock does not refuse this, or worse");
	ret = make_call(self, variant);
	EXPECT_EQ(err, error_of(ret));
	if (!err)
		EXPECT_EQ(variant->addr, ret);
	if (stock_changes(variant)) {
		EXPECT_NE(NULL, check_state());
		return;
	}
	ASSERT_OK(check_state());
	EXPECT_OK(check_contents(variant->stage));
	EXPECT_OK(check_guard_page(SRC - P));
	EXPECT_OK(check_charge(self, variant));
}

/* ---- refused by the driver, when everything else is done ---- */

/*
 * The ring of asynchronous I/O belongs to the process that made it. A child
 * inherits the mapping, and the kernel refuses to move it there, but only once
 * its pages have moved.
 */
#define EVENTS	1000

#define STOCK_BUG	"a bug of stock 6.12 that this catches"

FIXTURE(driver)
{
	size_t len;	/* of the ring, which is at SRC */
};

static bool is_alive(unsigned long ring)
{
	char event[32];
	struct timespec now = { 0 };

	return !syscall(__NR_io_getevents, ring, 0, 1, event, &now);
}

/* LEN bytes right above the ring, and LEN bytes right below it. */
FIXTURE_SETUP(driver)
{
	unsigned long ring = 0;
	struct vma vma;

	NEED(syscall(__NR_io_setup, 0, NULL) >= 0 || errno != ENOSYS, "needs asynchronous I/O");
	ASSERT_EQ(0, syscall(__NR_io_setup, EVENTS, &ring));
	ASSERT_TRUE(find_vma(ring, &vma));
	self->len = vma.end - vma.start;
	ASSERT_EQ(SRC, move_to(ring, self->len, self->len, SRC));
	ASSERT_TRUE(is_alive(SRC));
	ASSERT_EQ(SRC - LEN, map_anon(SRC - LEN, LEN));
	ASSERT_EQ(SRC + self->len, map_anon(SRC + self->len, LEN));
	stamp_range(SRC - LEN, LEN, SRC_ID);
	stamp_range(SRC + self->len, LEN, DST_ID);
}

FIXTURE_TEARDOWN(driver) { }

static const char *check_beside_ring(const FIXTURE_DATA(driver) *self)
{
	const char *why = check_stamps(SRC - LEN, LEN, SRC_ID);

	return why ?: check_stamps(SRC + self->len, LEN, DST_ID);
}

/* A call that the child makes, and that must leave everything alone. */
static void refuse(META, const FIXTURE_DATA(driver) *self, unsigned long addr,
		   size_t old_len, size_t new_len, int error)
{
	static char before[MB], after[MB];
	const long committed = committed_kb();
	struct counters was, is;

	ASSERT_GE(sizeof(before), self->len);
	memcpy(before, at(SRC), self->len);
	memset(after, 1, sizeof(after));
	save_state();
	read_counters(&was);
	EXPECT_EQ(error, error_of(move_to(addr, old_len, new_len, DST)));
	read_counters(&is);
	EXPECT_OK(check_state());
	/* For a moment the mapping was there twice, but nobody saw it. */
	EXPECT_EQ(was.size, was.peak);
	EXPECT_EQ(was.peak, is.peak);
	EXPECT_EQ(committed, committed_kb());
	memcpy(after, at(SRC), self->len);
	EXPECT_EQ(0, memcmp(before, after, self->len));
	EXPECT_OK(check_beside_ring(self));
}

/* In the child ASSERTs end the child only; what they say counts all the same. */
#define IN_CHILD(...) do {						\
	int status = -1;						\
	pid_t child;							\
									\
	NEED(!has_vmflag(SRC, "dc"), "children do not inherit a ring here"); \
	child = fork();							\
	ASSERT_LE(0, child);						\
	if (!child) {							\
		__VA_ARGS__;						\
		_exit(0);						\
	}								\
	ASSERT_EQ(child, waitpid(child, &status, 0));			\
	EXPECT_TRUE(WIFEXITED(status));					\
} while (0)

TEST_F(driver, refuses)
{
	IN_CHILD(refuse(_metadata, self, SRC, self->len, self->len, EINVAL));
	EXPECT_TRUE(is_alive(SRC));
}

/* What the call was to drop ends inside of the mapping above. */
TEST_F(driver, refuses_shrinking_mended)
{
	SKIP_STOCK(STOCK_BUG);
	IN_CHILD(refuse(_metadata, self, SRC, self->len + LEN / 2, self->len, EINVAL));
}

/* An old destination cannot be brought back: it is gone, but nothing else is. */
static void refuse_over(META, const FIXTURE_DATA(driver) *self)
{
	ASSERT_EQ(DST - LEN, map_anon(DST - LEN, self->len + 2 * LEN));
	stamp_range(DST - LEN, self->len + 2 * LEN, 5000);
	save_state();
	EXPECT_EQ(EINVAL, error_of(move_to(SRC, self->len, self->len, DST)));
	EXPECT_OK(check_unmapped(DST, self->len));
	EXPECT_OK(check_stamps(DST - LEN, LEN, 5000));
	EXPECT_OK(check_stamps(DST + self->len, LEN, 5000 + (LEN + self->len) / P));
	EXPECT_OK(check_beside_ring(self));
	ASSERT_EQ(DST, map_anon(DST, self->len));
	stamp_range(DST, self->len, 5000 + LEN / P);
	EXPECT_OK(check_state());
}

TEST_F(driver, refuses_over_mapping)
{
	IN_CHILD(refuse_over(_metadata, self));
}

/* As one of several it is refused before anything has moved. */
TEST_F(driver, refuses_one_of_several)
{
	const size_t len = self->len + 2 * LEN;

	IN_CHILD(refuse(_metadata, self, SRC - LEN, len, len, EFAULT));
}

/* ---- a part of a mapping whose driver is asked ---- */

/*
 * The driver is told the new mapping and takes it for the whole ring. So a part
 * does not move: that is refused before anything is split, for such a mapping
 * never becomes one again.
 */
static void refuse_parts(META, const FIXTURE_DATA(driver) *self)
{
	const size_t len = self->len;

	ASSERT_LE(4 * P, len);
	refuse(_metadata, self, SRC, P, P, EINVAL);
	refuse(_metadata, self, SRC + P, P, P, EINVAL);
	refuse(_metadata, self, SRC + P, len - P, len - P, EINVAL);
	refuse(_metadata, self, SRC, len - P, len - P, EINVAL);
	/* What moves is a part, too, if the rest is to be dropped, which stock does first. */
	if (!expect_base())
		refuse(_metadata, self, SRC, len, P, EINVAL);
}

TEST_F(driver, refuses_parts)
{
	IN_CHILD(refuse_parts(_metadata, self));
	EXPECT_TRUE(is_alive(SRC));
}

/*
 * Where the ring is at work, stock moves the part; the kernel takes that for the
 * ring, and destroying it unmaps what is behind.
 */
TEST_F(driver, own_ring_moves_as_a_whole_mended)
{
	const size_t len = self->len;

	SKIP_STOCK(STOCK_BUG);
	ASSERT_EQ(DST - LEN, map_anon(DST - LEN, len + 2 * LEN));
	stamp_range(DST - LEN, len + 2 * LEN, WHOLE_ID);
	refuse_parts(_metadata, self);
	EXPECT_OK(check_stamps(DST - LEN, len + 2 * LEN, WHOLE_ID));
	ASSERT_TRUE(is_alive(SRC));
	ASSERT_EQ(DST, move_to(SRC, len, len, DST));
	EXPECT_TRUE(is_alive(DST));
	EXPECT_OK(check_unmapped(SRC, len));
	EXPECT_EQ(0, syscall(__NR_io_destroy, DST));
	EXPECT_OK(check_unmapped(DST, len));
	EXPECT_OK(check_beside_ring(self));
	EXPECT_OK(check_stamps(DST - LEN, LEN, WHOLE_ID));
	EXPECT_OK(check_stamps(DST + len, LEN, WHOLE_ID + (LEN + len) / P));
}

/* To a place where nothing is, a line of the driver's would do. */
TEST_F(driver, part_of_own_ring_stays_mended)
{
	SKIP_STOCK(STOCK_BUG);
	EXPECT_EQ(EINVAL, error_of(move_to(SRC, P, P, DST)));
	EXPECT_OK(check_unmapped(DST, P));
	EXPECT_TRUE(is_alive(SRC));
}

TEST_HARNESS_MAIN
