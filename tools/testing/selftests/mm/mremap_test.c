// SPDX-License-Identifier: GPL-2.0
/*
 * What mremap(2) does, as the model of mremap_model.h says: tables of layouts and
 * calls x sizes of what moves x kinds of memory, drawn layouts and calls, and all of
 * them with a failure at each allocation. After each call: contents, protection,
 * flags, locks, file offsets, registration and pagemap bits of every cell, what the
 * process is charged, the events that monitors are told, and if the call is refused,
 * that all is as before.
 *
 * Tests whose name ends in _mended are of what stock 6.12 does not do: it moves one
 * mapping at a time, and does not undo all that a failed call has done.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "mremap_model.h"

#define ONE_AT_A_TIME	"stock 6.12 moves one mapping at a time"
#define UNDOES_LESS	"stock 6.12 does not undo all that it has done"
#define STOCK_BUG	"a bug of stock 6.12 that this catches"
#define NO_OVERLAP	"stock 6.12 does not know of MREMAP_OVERLAP"

/* ---- rows: one layout, one call ---- */

/* An asterisk in a text stands for the kind of memory under test. */
struct row {
	const char *low;
	const char *high;
	struct call call;
	struct call before[2];	/* made by the way, to get to the layout */
	int mappings;		/* that the new place is part of afterwards, if not 0 */
	const char *watched_low;	/* what is registered after that */
	const char *watched_high;
	bool mended;			/* stock does something else */
	enum shape shape;		/* where the test has none */
	int error;			/* for which it is refused */
};

#define ROWS(name, ...)							\
	FIXTURE(name)							\
	{								\
		struct world w;						\
	};								\
									\
	FIXTURE_VARIANT(name)						\
	{								\
		struct row row;						\
	};								\
									\
	FIXTURE_SETUP(name)						\
	{								\
		__VA_ARGS__;						\
	}								\
									\
	FIXTURE_TEARDOWN(name)						\
	{								\
		stop_failing();						\
	}

#define MOVED(from, nr, to)	{ from, nr, nr, FIXED, to }
#define SHIFTED(from, nr, to)	{ from, nr, nr, OVERLAP, to }

/* ---- one mapping ---- */

ROWS(one)

#define ONE(name, low, high, ...)					\
	FIXTURE_VARIANT_ADD(one, name) { { low, high, { __VA_ARGS__ } } }

/* In place. */
ONE(same_size, "****", "", 0, 4, 4, MREMAP_MAYMOVE);
ONE(shrink_in_place, "******", "", 0, 6, 3);
ONE(shrink_middle, "******", "", 1, 3, 1, MREMAP_MAYMOVE);
ONE(shrink_across_mappings, "wwwrrr", "", 0, 6, 2);
ONE(shrink_behind_first, "wwrrss", "", 0, 6, 5);
ONE(shrink_from_gap, "ww..rrs", "", 0, 6, 3);
ONE(grow_in_place, "****", "", 0, 4, 6);
ONE(grow_in_place_may_move, "****", "", 0, 4, 6, MREMAP_MAYMOVE);
ONE(grow_tail_part, "****", "", 2, 2, 4);
ONE(grow_into_next, "**--**", "", 0, 2, 4);
ONE(grow_to_neighbour, "ee..ww", "", 0, 2, 4);
ONE(grow_beyond_short_gap, "ww.r", "", 0, 2, 4, MREMAP_MAYMOVE);

/* To a place that the kernel chooses. */
ONE(grow_blocked, "****r", "", 0, 4, 6, MREMAP_MAYMOVE);
ONE(grow_front_part, "******", "", 0, 4, 8, MREMAP_MAYMOVE);

/* To a given one. */
ONE(move, "****", "", 0, 4, 4, FIXED, UP(0));
ONE(move_over, "****", "ddpprr", 0, 4, 4, FIXED, UP(1));
ONE(move_over_itself_charged, "****", "wwwwww", 0, 4, 4, FIXED, UP(1));
ONE(move_within, "********", "", 1, 2, 2, FIXED, 5);
ONE(one_cell, "*", "", 0, 1, 1, FIXED, UP(0));
ONE(head, "******", "", 0, 2, 2, FIXED, UP(0));
ONE(middle, "******", "", 2, 2, 2, FIXED, UP(2));
ONE(middle_of_three, "ww**rr", "rr..ww", 2, 2, 2, FIXED, UP(2));
ONE(tail, "******", "", 4, 2, 2, FIXED, UP(4));
ONE(grow, "****", "", 0, 4, 7, FIXED, UP(0));
ONE(grow_over, "****", "wwwwdddddd", 0, 4, 7, FIXED, UP(1));
ONE(grow_over_smaller, "****", ".....w", 0, 4, 7, FIXED, UP(0));
ONE(grow_over_uncharged, "****", "oooo", 0, 4, 7, FIXED, UP(0));
ONE(shrink, "*******", "", 0, 7, 3, FIXED, UP(0));
ONE(shrink_over, "*******", "dddddd", 0, 7, 3, FIXED, UP(1));
ONE(shrink_move_across_mappings, "wwwrrr", "", 0, 6, 2, FIXED, UP(0));
ONE(shrink_part_across_mappings, "****rrrr", "", 1, 5, 2, FIXED, UP(0));
ONE(first_table_in_part, "******", "", 1, 5, 5, FIXED, UP(1));
ONE(just_above, "****", "", 0, 4, 4, FIXED, 4);
ONE(just_below, "....****", "", 4, 4, 4, FIXED);
ONE(shrink_just_above, "*****", "", 0, 5, 3, FIXED, 5);
ONE(shrink_just_below, "...*****", "", 3, 5, 3, FIXED);
ONE(grow_just_above, "***", "", 0, 3, 5, FIXED, 3);
ONE(grow_just_below, ".....***", "", 5, 3, 5, FIXED);
ONE(down, "", "****", UP(0), 4, 4, FIXED);

/* What is unmapped for it is registered, with one monitor or with two. */
ONE(move_over_registered, "****", "xxxxxx", 0, 4, 4, FIXED, UP(1));
ONE(move_over_registered_with_gaps, "******", ".x.xx.x", 0, 6, 6, FIXED, UP(0));
ONE(move_over_two_monitors, "****", "xx22", 0, 4, 4, FIXED, UP(0));
ONE(shrink_over_registered, "******", "xx22", 0, 6, 3, FIXED, UP(0));
ONE(shrink_across_registered, "****rrxxrr22", "", 0, 12, 2);
ONE(shrink_move_across_registered, "****rrxxrr22", "", 0, 12, 2, FIXED, UP(0));
ONE(grow_to_writable, "**..ww", "", 0, 2, 4);

/* Refused, and nobody is told. */
ONE(grow_blocked_here, "****r", "", 0, 4, 6);
ONE(shrink_dontunmap, "****", "", 0, 4, 2, DONTUNMAP);
ONE(overlap, "****", "", 0, 4, 4, FIXED, 2);
ONE(before_it, ".****", "", 0, 4, 4, FIXED, UP(0));
ONE(gap_grows_over_registered_mended, "**.r", "xxxxxx", 0, 4, 5, FIXED, UP(0));
ONE(duplicate_over_registered, "****", "xxxx", 0, 0, 4, FIXED, UP(0));

/* MREMAP_DONTUNMAP. */
ONE(dontunmap, "****", "", 0, 4, 4, DONTUNMAP);
ONE(dontunmap_hint, "****", "", 0, 4, 4, DONTUNMAP, UP(0));
ONE(dontunmap_hint_for_tables, "********", "", 0, 8, 8, DONTUNMAP, UP(0));
ONE(dontunmap_hint_taken, "****", "..r", 0, 4, 4, DONTUNMAP, UP(0));

/* It grows, and its old place stays reserved; stock refuses that. */
ONE(dontunmap_grow, "****", "", 0, 4, 7, DONTUNMAP);
ONE(dontunmap_grow_hint, "****", "", 0, 4, 7, DONTUNMAP, UP(0));
ONE(dontunmap_grow_fixed, "****", "", 0, 4, 7, KEEP, UP(0));
ONE(dontunmap_grow_over, "****", "wwwwdddddd", 0, 4, 7, KEEP, UP(1));
ONE(dontunmap_grow_part, "******", "", 1, 3, 5, KEEP, UP(1));
ONE(dontunmap_grow_just_above, "****", "", 0, 4, 7, KEEP, 4);
ONE(dontunmap_fixed, "****", "", 0, 4, 4, KEEP, UP(0));
ONE(dontunmap_over, "****", "dddddd", 0, 4, 4, KEEP, UP(1));
ONE(dontunmap_part, "******", "", 2, 2, 2, KEEP, UP(2));
ONE(dontunmap_within_above, "********", "", 0, 2, 2, KEEP, 4);
ONE(dontunmap_within_below, "********", "", 4, 2, 2, KEEP);
ONE(dontunmap_within_next, "********", "", 2, 2, 2, KEEP, 4);
ONE(dontunmap_within_to_end, "********", "", 2, 2, 2, KEEP, 6);
ONE(dontunmap_just_above, "****", "", 0, 4, 4, KEEP, 4);

/* One more mapping of the same pages. */
ONE(duplicate, "****", "", 0, 0, 4, MREMAP_MAYMOVE);
ONE(duplicate_part, "******", "", 2, 0, 2, FIXED, UP(2));
ONE(duplicate_over, "******", "wwww", 2, 0, 4, FIXED, UP(1));

/* A half moves beside the rest, and must not be taken for one with it. */
ONE(lower_below, "....****", "", 4, 2, 2, FIXED, 2);
ONE(lower_above, "....****", "", 4, 2, 2, FIXED, 8);
ONE(upper_below, "....****", "", 6, 2, 2, FIXED, 2);
ONE(upper_above, "....****", "", 6, 2, 2, FIXED, 8);
ONE(lower_below_grow, "....****", "", 4, 2, 4, FIXED);
ONE(lower_above_grow, "....****", "", 4, 2, 4, FIXED, 8);
ONE(upper_below_grow, "....****", "", 6, 2, 4, FIXED);
ONE(upper_above_grow, "....****", "", 6, 2, 4, FIXED, 8);
ONE(lower_below_dontunmap, "....****", "", 4, 2, 2, KEEP, 2);
ONE(lower_above_dontunmap, "....****", "", 4, 2, 2, KEEP, 8);
ONE(upper_below_dontunmap, "....****", "", 6, 2, 2, KEEP, 2);
ONE(upper_above_dontunmap, "....****", "", 6, 2, 2, KEEP, 8);

/* By less than its length; stock refuses that. */
ONE(shift_up, "****", "", 0, 4, 4, OVERLAP, 1);
ONE(shift_up_by_half, "****", "", 0, 4, 4, OVERLAP, 2);
ONE(shift_up_by_all_but_one, "****", "", 0, 4, 4, OVERLAP, 3);
ONE(shift_down, ".****", "", 1, 4, 4, OVERLAP);
ONE(shift_down_by_half, "..****", "", 2, 4, 4, OVERLAP);
ONE(shift_down_by_all_but_one, "...****", "", 3, 4, 4, OVERLAP);
ONE(shift_up_over, "****dprr", "", 0, 4, 4, OVERLAP, 2);
ONE(shift_up_over_its_like, "****wwww", "", 0, 4, 4, OVERLAP, 2);
ONE(shift_down_over, "ddpr****rr", "", 4, 4, 4, OVERLAP, 2);
ONE(shift_up_over_registered, "****xxxx", "", 0, 4, 4, OVERLAP, 2);
ONE(shift_down_over_two_monitors, "x22x****", "", 4, 4, 4, OVERLAP, 1);
ONE(shift_up_between_neighbours, "ww****.w", "", 2, 4, 4, OVERLAP, 3);
ONE(shift_down_between_neighbours, "w.****ww", "", 2, 4, 4, OVERLAP, 1);
ONE(shift_part_up, "********", "", 2, 3, 3, OVERLAP, 3);
ONE(shift_part_down, "********", "", 3, 3, 3, OVERLAP, 2);
ONE(shift_head_up, "********", "", 0, 4, 4, OVERLAP, 3);
ONE(shift_tail_down, "********", "", 4, 4, 4, OVERLAP, 1);
ONE(shift_long, "****************", "", 0, 16, 16, OVERLAP, 1);
ONE(shift_by_nothing, "****", "", 0, 4, 4, OVERLAP);
ONE(shift_part_by_nothing, "******", "", 1, 4, 4, OVERLAP, 1);
ONE(shift_and_grow, "****", "", 0, 4, 5, OVERLAP, 1);
ONE(shift_and_shrink, "****", "", 0, 4, 3, OVERLAP, 1);
ONE(shift_nothing, ".***", "", 0, 4, 4, OVERLAP, 1);
/* It may overlap, and does not. */
ONE(may_overlap, "****", "", 0, 4, 4, OVERLAP, UP(0));
ONE(may_overlap_just_above, "****", "", 0, 4, 4, OVERLAP, 4);
ONE(may_overlap_grow, "****", "", 0, 4, 7, OVERLAP, UP(0));
ONE(may_overlap_shrink, "****", "", 0, 4, 2, OVERLAP, 6);

/* What is beside the new place has moved there before: they are one again. */
#define ONE_AFTER(name, low, call, ...)					\
	FIXTURE_VARIANT_ADD(one, name) {				\
		{ low, "", call, .before = { __VA_ARGS__ }, .mappings = 1 } \
	}

ONE_AFTER(merges_below, "******", MOVED(2, 4, UP(2)), MOVED(0, 2, UP(0)));
ONE_AFTER(merges_above, "******", MOVED(0, 4, UP(0)), MOVED(4, 2, UP(4)));
ONE_AFTER(merges_on_both_sides, "******", MOVED(1, 4, UP(1)),
	  MOVED(0, 1, UP(0)), MOVED(5, 1, UP(5)));
ONE_AFTER(merges_with_untouched, "eeww", MOVED(0, 2, UP(0)), MOVED(2, 2, UP(2)));
ONE_AFTER(returns, "********", MOVED(UP(2), 4, 2), MOVED(2, 4, UP(2)));
ONE_AFTER(shift_returns_down, "********", SHIFTED(3, 4, 2), SHIFTED(2, 4, 3));
ONE_AFTER(shift_returns_up, "********", SHIFTED(1, 4, 3), SHIFTED(3, 4, 1));
ONE_AFTER(shift_returns_alone, "****....", SHIFTED(2, 4, 0), SHIFTED(0, 4, 2));

/* The same, but for who has registered what: the neighbours, and what returns. */
ROWS(neighbours, NEED(!variant->row.mended || !expect_base(), STOCK_BUG))

#define NEIGHBOUR(name, text, from, mappings, low, high, ...)		\
	FIXTURE_VARIANT_ADD(neighbours, name) {				\
		{ text, "", MOVED(UP(from), 2, from),			\
		  { MOVED(from, 2, UP(from)) }, mappings, low, high, __VA_ARGS__ } \
	}

/* Below, above, and on both sides of it: cells that are watched as in these texts. */
#define NEIGHBOURS(name, beside, returns, merges, ...)			\
	NEIGHBOUR(name##_below, "****", 2, merges ? 1 : 2, beside,	\
		  ".." returns, __VA_ARGS__);				\
	NEIGHBOUR(name##_above, "****", 0, merges ? 1 : 2, ".." beside,	\
		  returns, __VA_ARGS__);				\
	NEIGHBOUR(name##_on_both_sides, "******", 2, merges ? 1 : 3,	\
		  beside ".." beside, ".." returns, __VA_ARGS__)

/* It becomes one with neighbours of the same monitor, which wants to know. */
NEIGHBOURS(registered_all, "yy", "yy", true);
/* It stays registered, and does not spread that. */
NEIGHBOURS(not_registered_with_event, "..", "yy", false);
/* One that was never registered does not become so. */
NEIGHBOURS(registered_but_not_it, "yy", "..", false);
/* Neighbours of another monitor stay that one's. */
NEIGHBOURS(of_another_monitor, "xx", "11", false);
/* It loses its registration, and must not take along that of its neighbours. */
NEIGHBOURS(keep_what_it_loses_mended, "vv", "vv", false, true);
/* It becomes one with neighbours that are as unregistered as it will be. */
NEIGHBOURS(not_registered_mended, "..", "vv", true, true);

/* ---- several ---- */

ROWS(several, SKIP_STOCK(ONE_AT_A_TIME))

#define CALL_SEVERAL(name, low, high, ...)				\
	FIXTURE_VARIANT_ADD(several, name) { { low, high, { __VA_ARGS__ } } }

/* A move of nr cells. */
#define SEVERAL(name, low, high, from, nr, to)				\
	CALL_SEVERAL(name, low, high, from, nr, nr, FIXED, to)

/* What moves. */
SEVERAL(two, "wr", "", 0, 2, UP(0));
SEVERAL(every_kind, "wwrrnnooddllggssqqpp", "", 0, 20, UP(0));
SEVERAL(every_kind_over_another, "wrnodlgsqpwrnodlgsqp", "nodlgsqpwrnodlgsqpwr", 0, 20, UP(0));
SEVERAL(alternating, "wrwrwrwrwrwrwrwr", "", 0, 16, UP(0));
SEVERAL(files_of_other_offsets, "ssqqssppqqpp", "pppppp", 0, 12, UP(0));
SEVERAL(with_hugetlb, "w*rs", "", 0, 4, UP(0));

/* First and last mapping are split: what is outside of the range stays. */
SEVERAL(part_of_first, "wwwwrr", "", 2, 4, UP(2));
SEVERAL(part_of_last, "wwrrrr", "", 0, 4, UP(0));
SEVERAL(part_of_both, "wwwwrwwww", "", 2, 5, UP(2));
SEVERAL(part_of_both_files, "sssspqqqq", "wwwwwwwww", 2, 5, UP(2));
SEVERAL(part_of_both_locked, "llllrllll", "", 3, 3, UP(3));
SEVERAL(part_of_last_hugetlb, "w****r", "", 0, 3, UP(0));
SEVERAL(part_of_first_hugetlb, "w****r", "", 3, 3, UP(0));
SEVERAL(part_of_one, "wwwwww", "", 2, 2, UP(2));
SEVERAL(beside_sealed, "WwrW", "RddR", 1, 2, UP(1));
SEVERAL(beside_registered, "uwrwx", "uddwx", 1, 3, UP(1));

/* Gaps are kept. */
SEVERAL(inner_gap, "ww..rr", "", 0, 6, UP(0));
SEVERAL(inner_gap_over_mapping, "ww..rr", "pppppp", 0, 6, UP(0));
SEVERAL(inner_gap_over_others, "ww..rr", "ss.qlw", 0, 6, UP(0));
SEVERAL(inner_gap_in_what_fits, "ww..rr", "..dd..", 0, 6, UP(0));
SEVERAL(many_gaps, "w.r.s.p..w", "llllllllll", 0, 10, UP(0));
SEVERAL(trailing_gap, "wwr...", "dddddd", 0, 6, UP(0));
SEVERAL(trailing_gap_of_one, "w...", "dddd", 0, 4, UP(0));
SEVERAL(trailing_gap_over_many, "w", "drdrdr.pps.q", 0, 12, UP(0));
SEVERAL(trailing_gap_of_part, "www...", "dddddd", 1, 5, UP(1));
SEVERAL(sealed_in_inner_gap, "w.r", "dWd", 0, 3, UP(0));
SEVERAL(sealed_in_trailing_gap, "wr.", "ddW", 0, 3, UP(0));
SEVERAL(sealed_behind_one, "w..", "dRS", 0, 3, UP(0));

/* Destinations. */
SEVERAL(hugetlb_before_gap, "w**..r", "", 1, 4, UP(0));
SEVERAL(hugetlb_over_hugetlb, "w**r", "****", 0, 4, UP(0));
SEVERAL(middle_of_destination, "wsr", "dddddddd", 0, 3, UP(2));
SEVERAL(two_destinations, "wsr", "ddpp", 0, 3, UP(1));
SEVERAL(hole_in_destination, "wsrw", "d..p", 0, 4, UP(0));
SEVERAL(locked_destination, "wsr", "lllll", 0, 3, UP(1));
SEVERAL(registered_destination, "w.rr", "xxxxxx", 0, 4, UP(1));
SEVERAL(three_over_registered, "wr.pp.ws", "xxxxxx22", 0, 8, UP(0));
SEVERAL(like_its_new_neighbours, "wr", "w..r", 0, 2, UP(1));
SEVERAL(just_below, "....wrs", "", 4, 3, 1);
SEVERAL(just_above, "wrs", "", 0, 3, 3);
SEVERAL(just_below_over, "pppdwrs", "", 4, 3, 1);
SEVERAL(just_above_over, "wrsdppp", "", 0, 3, 3);
SEVERAL(just_above_with_gap, "w.rddd", "", 0, 3, 3);
SEVERAL(just_below_with_gap, "dddw.r", "", 3, 3, 0);
SEVERAL(just_above_trailing_gap, "wr..dddd", "", 0, 4, 4);
SEVERAL(down, "dd", "wwrs", UP(0), 4, 0);
SEVERAL(just_above_in_own_mapping, "wrrrrr", "", 0, 2, 2);
SEVERAL(just_below_in_own_mapping, "wwwwr", "", 3, 2, 1);

/* By less than their length, among themselves and over others. */
#define SHIFT(name, low, from, nr, to)					\
	CALL_SEVERAL(name, low, "", from, nr, nr, OVERLAP, to)

SHIFT(shift_up, "wrs", 0, 3, 1);
SHIFT(shift_down, ".wrs", 1, 3, 0);
SHIFT(shift_every_kind_up, "wwrrnnooddllggssqqpp", 0, 20, 1);
SHIFT(shift_every_kind_up_by_half, "wwrrnnooddllggssqqpp", 0, 20, 10);
SHIFT(shift_every_kind_up_far, "wwrrnnoddlggsqp", 0, 15, 14);
SHIFT(shift_every_kind_down, ".wwrrnnooddllggssqqpp", 1, 20, 0);
SHIFT(shift_every_kind_down_far, "pqsdwgwqprqlwpwwwrrnnoddlggsqp", 15, 15, 1);
SHIFT(shift_alternating_up, "wrwrwrwrwrwrwrwr", 0, 16, 1);
SHIFT(shift_alternating_down, "...wrwrwrwrwrwrwrwr", 3, 16, 0);
SHIFT(shift_part_of_both_up, "wwwwrwwww", 2, 5, 3);
SHIFT(shift_part_of_both_down, "wwwwrwwww", 2, 5, 1);
SHIFT(shift_part_of_both_locked, "llllrllll", 2, 5, 4);
SHIFT(shift_files_of_other_offsets, "ssqqssppqqpp", 0, 12, 5);
SHIFT(shift_gap_up, "ww..rr", 0, 6, 1);
SHIFT(shift_gap_up_by_it, "ww..rr", 0, 6, 2);
SHIFT(shift_gap_up_over, "ww..rrdpp", 0, 6, 3);
SHIFT(shift_gap_up_by_all_but_one, "ww..rrsddpp", 0, 6, 5);
SHIFT(shift_gap_down, "..ww..rr", 2, 6, 1);
SHIFT(shift_gap_down_over, "dppdww..rr", 4, 6, 1);
SHIFT(shift_many_gaps_up, "w.r.s.p..w", 0, 10, 1);
SHIFT(shift_many_gaps_over, "w.r.s.p..wlllllll", 0, 10, 5);
SHIFT(shift_many_gaps_down, "lllllw.r.s.p..w", 5, 10, 2);
SHIFT(shift_trailing_gap_up, "wr..", 0, 4, 1);
SHIFT(shift_trailing_gap_far, "wr..dddd", 0, 4, 3);
SHIFT(shift_one_with_gap, "w...ddd", 0, 4, 2);
SHIFT(shift_one_with_gap_down, "dddw...", 3, 4, 1);
SHIFT(shift_over_registered, "wrxx22", 0, 2, 1);
SHIFT(shift_with_registered, "wrxw", 0, 4, 1);
SHIFT(shift_with_hugetlb, "w*rs", 0, 4, 1);
SHIFT(shift_sealed_first, "Wr", 0, 2, 1);
SHIFT(shift_sealed_last, "wR", 0, 2, 1);
SHIFT(shift_onto_sealed, "wrsS", 0, 3, 1);
SHIFT(shift_beside_sealed, "Wwr..W", 1, 2, 2);
SHIFT(shift_with_sealed_in_gap, "w..rSd", 0, 4, 2);
SHIFT(shift_by_nothing, "w.rs", 0, 4, 0);
FIXTURE_VARIANT_ADD(several, shift_returns) {
	{ "wwwwrr..ddss", "", SHIFTED(3, 8, 2), .before = { SHIFTED(2, 8, 3) } }
};

/* These work as they do for one mapping. */
CALL_SEVERAL(shrink_to_one, "wwr.s", "ddd", 0, 5, 1, FIXED, UP(1));
CALL_SEVERAL(shrink_here, "wwr.s", "", 0, 5, 1);
CALL_SEVERAL(same_size_here, "wr.s", "", 0, 4, 4, MREMAP_MAYMOVE);

/* The last one grows. */
CALL_SEVERAL(grow, "wrs", "", 0, 3, 6, FIXED, UP(0));
CALL_SEVERAL(grow_file, "wps", "", 0, 3, 6, FIXED, UP(0));
CALL_SEVERAL(grow_locked, "wrlll", "", 0, 4, 7, FIXED, UP(0));
CALL_SEVERAL(grow_part_of_both, "wwwrrww", "", 1, 5, 8, FIXED, UP(1));
CALL_SEVERAL(grow_over, "wrs", "ddpp..ww", 0, 3, 6, FIXED, UP(1));
CALL_SEVERAL(grow_just_above, "wrw", "", 0, 3, 6, FIXED, 3);
CALL_SEVERAL(grow_in_place, "wlrw", "", 0, 4, 9, MREMAP_MAYMOVE);
CALL_SEVERAL(grow_locked_in_place, "wrll", "", 0, 4, 9, MREMAP_MAYMOVE);
CALL_SEVERAL(grow_tail_in_place, "wwwr", "", 2, 2, 5, MREMAP_MAYMOVE);
CALL_SEVERAL(grow_to_neighbour_in_place, "wree..ee", "", 0, 4, 6, MREMAP_MAYMOVE);
CALL_SEVERAL(grow_after_hugetlb, "**w", "", 0, 3, 6, FIXED, UP(0));
CALL_SEVERAL(grow_to_any_place, "wrwd", "", 0, 3, 6, MREMAP_MAYMOVE);
CALL_SEVERAL(grow_part_to_any_place, "wwrw", "", 1, 2, 6, MREMAP_MAYMOVE);
CALL_SEVERAL(grow_file_to_any_place, "wrppd", "", 0, 4, 7, MREMAP_MAYMOVE);
CALL_SEVERAL(grow_file_after_hugetlb_to_any_place, "**sd", "", 0, 3, 6, MREMAP_MAYMOVE);
CALL_SEVERAL(grow_after_hugetlb_to_any_place, "**wd", "", 0, 3, 6, MREMAP_MAYMOVE);
CALL_SEVERAL(grow_and_keep, "wrw", "", 0, 3, 6, KEEP, UP(0));
CALL_SEVERAL(grow_and_keep_at_any_place, "wrl", "", 0, 3, 6, DONTUNMAP);

/* The tail is dropped. */
CALL_SEVERAL(shrink, "wwrrss", "", 0, 6, 3, FIXED, UP(0));
CALL_SEVERAL(shrink_part_of_both, "wwwrrss", "", 1, 5, 3, FIXED, UP(1));
CALL_SEVERAL(shrink_inside_last, "wwrrrrr", "", 0, 5, 3, FIXED, UP(0));
CALL_SEVERAL(shrink_inside_last_hugetlb, "w****", "", 0, 4, 2, FIXED, UP(0));
CALL_SEVERAL(shrink_gap_in_tail, "wwr.s.l", "", 0, 7, 3, FIXED, UP(0));
CALL_SEVERAL(shrink_over, "wwrrss", "ddpp", 0, 6, 3, FIXED, UP(1));
CALL_SEVERAL(shrink_registered_tail, "wwrrxx22", "", 0, 8, 3, FIXED, UP(0));
CALL_SEVERAL(shrink_just_above, "wwrrss", "", 0, 6, 3, FIXED, 6);
CALL_SEVERAL(shrink_just_below, "...wwrrss", "", 3, 6, 3, FIXED);

/* Refused before anything happens. */
CALL_SEVERAL(grow_with_gap, "w.r", "", 0, 3, 6, FIXED, UP(0));
CALL_SEVERAL(grow_into_gap, "wr.", "", 0, 3, 6, MREMAP_MAYMOVE);
CALL_SEVERAL(grow_hugetlb, "w**", "", 0, 3, 6, FIXED, UP(0));
CALL_SEVERAL(grow_hugetlb_in_place, "w**", "", 0, 3, 6, MREMAP_MAYMOVE);
CALL_SEVERAL(grow_hugetlb_to_any_place, "w**d", "", 0, 3, 6, MREMAP_MAYMOVE);
CALL_SEVERAL(grow_may_not_move, "wr", "", 0, 2, 4);
CALL_SEVERAL(grow_sealed, "wRw", "", 0, 3, 6, MREMAP_MAYMOVE);
CALL_SEVERAL(grow_registered, "wxw", "", 0, 3, 6, MREMAP_MAYMOVE);
CALL_SEVERAL(grow_last_registered, "wx", "", 0, 2, 4, MREMAP_MAYMOVE);
CALL_SEVERAL(shrink_with_gap, "w.rr", "", 0, 4, 3, FIXED, UP(0));
CALL_SEVERAL(shrink_sealed_tail, "wrR", "", 0, 3, 2, FIXED, UP(0));
CALL_SEVERAL(shrink_over_sealed, "wrs", "dR", 0, 3, 2, FIXED, UP(0));
CALL_SEVERAL(grow_over_sealed, "wr", "dddR", 0, 2, 4, FIXED, UP(0));
CALL_SEVERAL(shrink_and_keep, "wrs", "", 0, 3, 2, KEEP, UP(0));

/* Kept at the old place, with the new one chosen by the kernel. */
CALL_SEVERAL(dontunmap_anywhere, "wwrr.lw", "", 1, 6, 6, DONTUNMAP);
CALL_SEVERAL(dontunmap_hint, "wwrr.lw", "", 1, 6, 6, DONTUNMAP, UP(1));
CALL_SEVERAL(dontunmap_hint_taken, "wwrr.lw", "..d", 1, 6, 6, DONTUNMAP, UP(1));
CALL_SEVERAL(dontunmap_trailing_gap, "ww..", "", 0, 4, 4, DONTUNMAP);

/* Kept at the old place. */
CALL_SEVERAL(dontunmap, "wwwwrr.pps.ddd", "", 2, 11, 11, KEEP, UP(2));
CALL_SEVERAL(dontunmap_over, "wwwwrr.ppslddd", "wwwwwwwrrrrrddwd", 2, 11, 11, KEEP, UP(2));

/* What can be moved by itself can be moved there and back, and again, being kept. */
static const char *move_about(struct world *w, const struct call *there)
{
	struct call step = *there;
	const char *why;

	step.from = there->to;
	step.to = there->from;
	why = call_as_modelled(w, &step);
	step = *there;
	step.flags = KEEP;
	for (int i = 0; !why && i < 2; i++)
		why = call_as_modelled(w, &step);
	return why ?: call_as_modelled(w, there);
}

static const char *substitute(const char *text, char kind)
{
	static char texts[2][CELLS + 1];
	static int nr;
	char *out = texts[nr = !nr];

	for (int i = 0; i <= (int)strlen(text); i++)
		out[i] = text[i] == '*' ? kind : text[i];
	return out;
}

static const char *lay_row(struct world *w, const struct row *row, char kind)
{
	return lay_out(w, substitute(row->low, kind), substitute(row->high, kind));
}

static const char *come_to_layout(struct world *w, const struct row *row)
{
	const int fd = failure.fd;
	const char *why = NULL;

	failure.fd = -1;
	for (int i = 0; !why && i < 2 && row->before[i].old; i++)
		why = call_as_modelled(w, &row->before[i]);
	failure.fd = fd;
	if (!why && row->watched_low)
		why = watch(w, 0, row->watched_low) ?: watch(w, HALF, row->watched_high);
	return why;
}

static int mappings_at(const struct world *w, int first, int nr)
{
	int mappings = 1;

	for (int i = first + 1; i < first + nr; i++)
		mappings += !w->joined[i];
	return mappings;
}

/* hugetlb never merges, nor does what is no longer registered with what is. */
static bool may_merge(const struct world *w, int first, int end)
{
	for (int i = first; i < end; i++)
		if (w->cells[i].hugetlb || w->cells[i].is.flags != w->cells[first].is.flags)
			return false;
	return true;
}

/*
 * Nor a copy of a write-protected file that is no longer registered: only what is
 * keeps its write protection when pages are reclaimed, and a failed move would have
 * to bring it back.
 */
static bool has_lost_protection(const struct cell *cell)
{
	return cell->is.inode && cell->protected && !has_flag(cell, " uw ");
}

/* With its neighbours, of which there is at least one. */
static const char *check_merged(struct world *w, const struct row *row)
{
	int first = row->call.to, end = first + row->call.new, wanted = row->mappings;

	if (has_lost_protection(&w->cells[first]))
		wanted = 1 + w->cells[first - 1].is.mapped + w->cells[end].is.mapped;
	while (first > 0 && w->cells[first - 1].is.mapped)
		first--;
	while (end < CELLS && w->cells[end].is.mapped)
		end++;
	if (may_merge(w, first, end) && mappings_at(w, first, end - first) != wanted)
		return complain("%d mappings, not %d",
				mappings_at(w, first, end - first), wanted);
	return NULL;
}

static bool page_out(struct world *w)
{
	bool any = false;

	for (int i = 0; i < CELLS; i++) {
		if (!w->cells[i].is.mapped || w->cells[i].hugetlb)
			continue;
		madvise(at(cell_addr(w, i)), w->unit, MADV_PAGEOUT);
		any |= pagemap_entry(cell_addr(w, i)) & PM_SWAP;
	}
	return any;
}

/* On stock, what a refused call with MREMAP_FIXED has unmapped is gone. */
static bool stock_destroys(const struct world *w, const struct call *call)
{
	return expect_base() && fixed(call) && errors_of(w, call) && w->cells[call->to].is.mapped;
}

/* What is to be done beside the call. */
#define SWAP	1	/* before it, as much as can be */
#define FORK	2	/* after it: a child must find all of it, too */
#define ABOUT	4	/* and then it moves about */

/* Also what a child inherits, which a mapping has to be known to have pages for. */
static const char *child_agrees(const struct world *w)
{
	const pid_t child = fork();
	int status;

	if (!child)
		_exit(!!check_contents(w));
	if (child < 0 || waitpid(child, &status, 0) != child)
		return "cannot fork";
	return status ? "a child does not find the pages" : NULL;
}

static const char *run_kind(struct world *w, const struct row *row,
			    enum shape shape, char kind, unsigned int way)
{
	const struct call *call = &row->call;
	const char *why = make_world(w, shape);
	bool done;

	why = why ?: lay_row(w, row, kind);
	why = why ?: come_to_layout(w, row);
	if (why || stock_destroys(w, call))
		return why;
	if ((way & SWAP) && !page_out(w))
		return "needs pages that can be swapped out";
	track(w);
	done = !errors_of(w, call);
	if (row->error && errors_of(w, call) != ERROR(row->error))
		return "needs what is refused for that";
	why = settle(w) ?: call_as_modelled(w, call);
	if (!why && row->error)
		why = call_refused(w, call, row->error);
	/* Stock keeps what was registered apart. */
	if (!why && done && row->mappings && !(expect_base() && strchr("uv24", kind)))
		why = check_merged(w, row);
	if (!why && (way & FORK))
		why = child_agrees(w);
	if (!why && done && (way & ABOUT) && is_multi(call))
		why = move_about(w, call);
	return why ?: reveal(w) ?: rewrite(w);
}

/* What is cannot be unmapped. */
static bool has_sealed(const char *text)
{
	while (*text && !isupper((unsigned char)*text))
		text++;
	return *text;
}

/* The first rounds may make page tables that later ones need, too. */
static const char *run_without_leak(struct world *w, const struct row *row,
				    enum shape shape, char kind, unsigned int way)
{
	long before = 0, after = 1;

	for (int round = 0; round < 3 && after > before; round++) {
		const char *why;

		before = page_tables_kb();
		why = run_kind(w, row, shape, kind, way);
		drop_world(w);
		if (why)
			return why;
		if (has_sealed(row->low) || has_sealed(row->high))
			return NULL;
		after = page_tables_kb();
	}
	if (after > before)
		return complain("page tables of %ld kB are left", after - before);
	return NULL;
}

static bool is_missing(const char *why)
{
	return why && !strncmp(why, "needs ", 6);
}

/* Not all rows are to leave out the same. */
static unsigned int turn_of(const struct row *row)
{
	return strlen(row->low) + row->call.from + row->call.old + row->call.new;
}

/*
 * Which of the kinds of memory it is to be. If there are few, all of them. Of many some may
 * be left out.
 */
static const char *kinds_of(const struct row *row, const char *kinds)
{
	const size_t nr = strlen(kinds);
	static char chosen[32];
	char *next = chosen;

	if (!strchr(row->low, '*') && !strchr(row->high, '*'))
		return "w";
	for (unsigned int i = 0; i < nr; i++)
		if (nr <= 5 || !is_left_out(turn_of(row) + i))
			*next++ = kinds[i];
	*next = '\0';
	return chosen;
}

/* The row for each of the kinds of memory, as far as this kernel has them. */
static void run_row(META, struct world *w, const struct row *row,
		    enum shape shape, const char *kinds, unsigned int way)
{
	const char *missing = NULL;
	int done = 0;

	/* The rest is done with the first of them only. */
	for (kinds = kinds_of(row, kinds); *kinds; kinds++, way &= SWAP) {
		const char *why;

		/*
		 * Stock gives the one the offset of its address, as if it had no
		 * file, and does not tell that the other is unmapped if it moves
		 * beside its old place.
		 */
		if (strchr("t4", *kinds) && expect_base())
			continue;
		why = run_without_leak(w, row, shape, *kinds, way);
		if (is_missing(why)) {
			missing = strdup(why);
			continue;
		}
		ASSERT_EQ(NULL, why)
			TH_LOG("kind %c: %s", *kinds, why);
		done++;
	}
	if (!done)
		SKIP(return, "%s", missing);
	if (missing)
		TH_LOG("some kinds of memory are left out: %s", missing);
}

/* Shapes x kinds of memory; hugetlb needs cells of its size. */
#define ROW_TEST(fixture, name, shape, kinds, way)			\
	TEST_F_TIMEOUT(fixture, name, 300)				\
	{								\
		run_row(_metadata, &self->w, &variant->row, shape, kinds, way); \
	}

ROW_TEST(one, pages, PAGES, "wrneolspqafbztuvxyj1245m3", FORK | ABOUT)
ROW_TEST(one, uneven, UNEVEN, "lps", 0)
ROW_TEST(one, tables, TABLES, "wshvy", ABOUT)
ROW_TEST(one, across_directories, ACROSS, "kp", 0)
ROW_TEST(one, huge_pages, HUGE, "vw", 0)
ROW_TEST(one, directories, DIRECTORIES, "swvy", 0)

/* Never touched, it fits anywhere; else it is back where it was. */
ROW_TEST(neighbours, pages, PAGES, "ewsp", 0)

ROW_TEST(several, pages_mended, PAGES, "s", FORK | ABOUT)
ROW_TEST(several, swapped_mended, PAGES, "w", SWAP)
ROW_TEST(several, uneven_mended, UNEVEN, "w", 0)
ROW_TEST(several, tables_mended, TABLES, "h", ABOUT)
ROW_TEST(several, huge_pages_mended, HUGE, "w", ABOUT)

/* ---- the same with a failure at each allocation ---- */

ROWS(failing, SKIP_STOCK(UNDOES_LESS))

#define FAILING(name, size, low, high, ...)				\
	FIXTURE_VARIANT_ADD(failing, name) {				\
		{ low, high, { __VA_ARGS__ }, .shape = size }		\
	}

#define FAILING_AFTER(name, size, low, call, ...)			\
	FIXTURE_VARIANT_ADD(failing, name) {				\
		{ low, "", call, { __VA_ARGS__ }, .shape = size }	\
	}

/* A move of nr cells to the same ones of the upper half. */
#define FAILING_MOVE(name, size, low, high, from, nr)			\
	FAILING(name, size, low, high, from, nr, nr, FIXED, UP(from))

FAILING_MOVE(one_cell, PAGES, "w", "", 0, 1);
FAILING_MOVE(middle, PAGES, "wwwwww", "", 1, 4);
FAILING_MOVE(two_tables, PAGES, "wwwwwwwwwwwwwwww", "", 6, 8);
FAILING_MOVE(uneven, UNEVEN, "wwwwww", "", 1, 4);
FAILING_MOVE(across_directories, ACROSS, "wwwwww", "", 1, 4);
FAILING_MOVE(shared, UNEVEN, "ssssss", "", 1, 4);
FAILING(empty_beside_itself, PAGES, "....eeee", "", 4, 2, 2, FIXED, 2);

/* Tables that move whole, and tables of these; huge pages, and parts of them. */
FAILING_MOVE(tables, TABLES, "wwwwww", "", 1, 4);
FAILING_MOVE(first_table_in_part, PARTS, "wwwwwwwwwwww", "", 1, 8);
FAILING_MOVE(directories, DIRECTORIES, "wwww", "", 0, 4);
FAILING_MOVE(huge, HUGE, "wwww", "", 0, 4);
FAILING_MOVE(huge_part, HUGE_PARTS, "wwwwwwwwwwww", "", 2, 8);

/* The new mapping is one with its neighbours until it is unmapped again. */
FAILING_AFTER(merges_on_both_sides, PAGES, "wwwwww", MOVED(1, 4, UP(1)),
	      MOVED(0, 1, UP(0)), MOVED(5, 1, UP(5)));
FAILING_AFTER(merges_shared, PAGES, "ssssss", MOVED(1, 4, UP(1)),
	      MOVED(0, 1, UP(0)), MOVED(5, 1, UP(5)));
FAILING_AFTER(merges_tables, TABLES, "wwwwww", MOVED(1, 4, UP(1)),
	      MOVED(0, 1, UP(0)), MOVED(5, 1, UP(5)));

/* Other lengths. */
FAILING(grow, PAGES, "wwww", "", 0, 4, 7, FIXED, UP(0));
FAILING(grow_part, PAGES, "wwwwww", "", 1, 4, 6, FIXED, UP(1));
FAILING(grow_across_directories, ACROSS, "wwww", "", 0, 4, 7, FIXED, UP(0));
FAILING(grow_anywhere, PARTS, "wwwwr", "", 0, 4, 12, MREMAP_MAYMOVE);
FAILING(grow_to_neighbour, PAGES, "ee..ww", "", 0, 2, 4);
FAILING(shrink, PARTS, "wwwwww", "", 1, 4, 2, FIXED, UP(1));
FAILING(shrink_two_mappings, PAGES, "wwwwrrrr", "", 1, 6, 2, FIXED, UP(1));
FAILING(shrink_in_place, PAGES, "wwwwwwww", "", 1, 6, 2);
FAILING(shrink_two_mappings_in_place, PAGES, "wwwwrrrr", "", 1, 6, 2);

/* The source stays mapped. */
FAILING(dontunmap, UNEVEN, "wwww", "", 0, 4, 4, KEEP, UP(0));
FAILING(dontunmap_part, PAGES, "wwwwww", "", 1, 4, 4, KEEP, UP(1));
FAILING(dontunmap_grow, PAGES, "wwwwww", "", 1, 4, 6, KEEP, UP(1));
FAILING(dontunmap_grow_locked, PAGES, "llllll", "", 1, 4, 6, KEEP, UP(1));
FAILING(dontunmap_shared, PAGES, "ssssss", "", 1, 4, 4, KEEP, UP(1));

/* Something is mapped at the destination. */
FAILING_MOVE(over, PAGES, "wwwwww", "wwwrrr", 1, 4);
FAILING(over_grow, PAGES, "wwww", "wwwwwrrrr", 0, 4, 7, FIXED, UP(1));
FAILING(over_shrink, PAGES, "wwwwrrrr", "wwrr", 1, 6, 2, FIXED, UP(1));
FAILING(over_dontunmap, PAGES, "wwww", "wwwrrr", 0, 4, 4, KEEP, UP(1));

FAILING_MOVE(locked, PAGES, "llllll", "", 1, 4);
FAILING(locked_grow, PAGES, "llll", "", 0, 4, 6, FIXED, UP(0));
FAILING(locked_grow_in_place, PAGES, "llll", "", 0, 4, 6);
FAILING(locked_dontunmap, PAGES, "llllll", "", 1, 4, 4, KEEP, UP(1));
FAILING_MOVE(merged_by_ksm, PAGES, "cccccc", "", 1, 4);

FAILING_MOVE(hugetlb, TABLES, "hhhh", "", 0, 4);
FAILING_MOVE(hugetlb_part, TABLES, "hhhh", "", 1, 2);
FAILING_MOVE(hugetlb_shared, TABLES, "kkkk", "", 0, 4);
FAILING_MOVE(hugetlb_shared_part, TABLES, "kkkk", "", 1, 2);
FAILING(hugetlb_shrink, TABLES, "hhhh", "", 0, 3, 1, FIXED, UP(0));
FAILING_MOVE(hugetlb_across_directories, ACROSS, "hhhh", "", 0, 4);
FAILING(hugetlb_grow, TABLES, "hhhh", "", 0, 4, 7, FIXED, UP(0));
FAILING(hugetlb_grow_over, TABLES, "hhhh", "wwwww", 0, 4, 7, FIXED, UP(1));
FAILING(hugetlb_shared_grow, TABLES, "kkkk", "", 0, 4, 7, FIXED, UP(0));
FAILING(hugetlb_shared_grow_part, TABLES, "kkkkkk", "", 1, 3, 5, FIXED, UP(1));
FAILING(hugetlb_shared_grow_over_itself, TABLES, "kkkk", "", 0, 2, 3, FIXED, 2);

FAILING_MOVE(registered, PAGES, "uuuuuu", "", 1, 4);
FAILING_MOVE(protected, UNEVEN, "vvvvvv", "", 1, 4);
FAILING_MOVE(protected_tables, TABLES, "vvvv", "", 0, 4);
FAILING_MOVE(protected_huge, HUGE, "vvvv", "", 0, 4);
FAILING_MOVE(protected_huge_parts, HUGE_PARTS, "vvvvvvvvvvvv", "", 2, 8);
FAILING_MOVE(protected_across_directories, ACROSS, "vvvv", "", 0, 4);
FAILING_MOVE(protected_hugetlb, ACROSS, "iiii", "", 0, 4);
FAILING(protected_shrink, PARTS, "yyyyyy", "", 1, 4, 2, FIXED, UP(1));
FAILING_MOVE(protected_parts, UNEVEN, "yyyyyy", "", 1, 4);
FAILING_MOVE(protected_shared, UNEVEN, "mmmmmm", "", 1, 4);
FAILING_MOVE(protected_shared_no_events, UNEVEN, "333333", "", 1, 4);
FAILING_MOVE(events, PAGES, "yyyyyy", "", 1, 4);
FAILING_MOVE(events_over, PAGES, "xxxxxx", "xxxjjj", 1, 4);
FAILING_MOVE(events_over_two_monitors, PAGES, "xxxx", "xx22", 0, 4);
FAILING(events_dontunmap, PAGES, "xxxx", "", 0, 4, 4, KEEP, UP(0));
FAILING(events_shrink, PAGES, "xxxxjjjj", "", 1, 6, 2, FIXED, UP(1));
FAILING(events_of_tail, PAGES, "wwwwjjjj", "", 1, 6, 2, FIXED, UP(1));
FAILING(events_shrink_in_place, PAGES, "xxxxjjjj", "", 1, 6, 2);

/* Several mappings in one call. */
FAILING_MOVE(several_merged_by_ksm, PAGES, "ccccrrw", "", 1, 6);
FAILING_MOVE(several, PAGES, "wwwwrr.pps.ddd", "", 2, 11);
FAILING_MOVE(several_locked, PAGES, "llllrr.lls.lll", "", 2, 11);
FAILING_MOVE(several_over, PAGES, "wwwwrr.pps.ddd", "wwwwwwwrrrrrddwd", 2, 11);
FAILING(several_dontunmap, PAGES, "wwwwrr.pps.ddd", "", 2, 11, 11, KEEP, UP(2));
FAILING(several_into_gaps, PAGES, "e.e", "e.e", 0, 3, 3, FIXED, UP(1));
FAILING(several_grow, PAGES, "wwrrw", "", 1, 4, 6, FIXED, UP(1));
FAILING(several_grow_over, PAGES, "wwrrw", "ddpp.ww", 1, 4, 6, FIXED, UP(1));
FAILING(several_grow_locked, PAGES, "wwrlll", "", 1, 4, 6, FIXED, UP(1));
FAILING(several_grow_in_place, PAGES, "wwrr", "", 1, 3, 6, MREMAP_MAYMOVE);
FAILING(several_grow_anywhere, PARTS, "wwrrwwp", "", 1, 5, 9, MREMAP_MAYMOVE);
FAILING(several_grow_and_keep, PAGES, "wwrrl", "", 1, 4, 6, KEEP, UP(1));
FAILING(several_shrink, PAGES, "wwrrssxx", "", 1, 7, 4, FIXED, UP(1));
FAILING(several_shrink_inside_ksm, PAGES, "wwcccccc", "", 1, 5, 3, FIXED, UP(1));
FAILING(several_shrink_over, PARTS, "wwrrss", "ddd", 1, 5, 3, FIXED, UP(0));
FAILING(several_dontunmap_anywhere, PARTS, "wwwwrr.pps.ddd", "", 2, 11, 11, DONTUNMAP);
FAILING_MOVE(several_with_own_tables, PARTS, "ww....rr....www", "", 0, 14);
FAILING_MOVE(several_parts, PARTS, "wwwwrr.pps.ddd", "", 2, 11);
FAILING_MOVE(several_uneven, UNEVEN, "wwwwrr.pps.ddd", "", 2, 11);
FAILING(several_uneven_dontunmap, UNEVEN, "wwwwrr.pps.ddd", "", 2, 11, 11, KEEP, UP(2));
FAILING_MOVE(several_tables, TABLES, "wwwwrr.pps.ddd", "......p...p", 2, 11);
FAILING_MOVE(several_huge_parts, HUGE_PARTS, "wwwwrr.pps.ddd", "", 2, 11);
FAILING_MOVE(several_directories, DIRECTORIES, "wwwwrr.pps.ddd", "", 2, 11);

/* By less than their length. */
#define FAILING_SHIFT(name, size, low, from, nr, to)			\
	FAILING(name, size, low, "", from, nr, nr, OVERLAP, to)

FAILING_SHIFT(shift_up, PAGES, "wwwwwww", 1, 5, 2);
FAILING_SHIFT(shift_down, PAGES, "wwwwwww", 1, 5, 0);
FAILING_SHIFT(shift_alone, PAGES, "..wwwww", 2, 5, 1);
FAILING_SHIFT(shift_two_tables, PAGES, "wwwwwwwwwwwwwwww", 4, 10, 7);
FAILING_SHIFT(shift_over, PAGES, "wwwwwwrrr", 1, 5, 4);
FAILING_SHIFT(shift_parts_up, PARTS, "wwwwwwwwwwwwww", 1, 10, 3);
FAILING_SHIFT(shift_parts_down, PARTS, "...wwwwwwwwww", 3, 10, 0);
FAILING_SHIFT(shift_uneven, UNEVEN, "..wwwwwwwwww", 2, 10, 1);
FAILING_SHIFT(shift_tables, TABLES, "wwwwww", 1, 4, 2);
FAILING_SHIFT(shift_across_directories, ACROSS, "wwwwww", 1, 4, 2);
FAILING_SHIFT(shift_directories, DIRECTORIES, "wwww", 0, 4, 1);
FAILING_SHIFT(shift_huge, HUGE, "wwwww", 0, 4, 1);
FAILING_SHIFT(shift_huge_parts, HUGE_PARTS, "wwwwwwwwwwww", 2, 8, 3);
FAILING_SHIFT(shift_shared, UNEVEN, "ssssss", 1, 4, 2);
FAILING_SHIFT(shift_private, PAGES, "ppppppp", 1, 5, 2);
FAILING_SHIFT(shift_locked, PAGES, "lllllll", 1, 5, 2);
FAILING_SHIFT(shift_untouched, PAGES, "eeeeeee", 1, 5, 2);
FAILING_SHIFT(shift_merged_by_ksm, PAGES, "ccccccc", 1, 5, 2);
FAILING_SHIFT(shift_several_up, PAGES, "wwwwrr.pps.ddd", 2, 11, 4);
FAILING_SHIFT(shift_several_down, PAGES, "wwwwrr.pps.ddd", 2, 11, 1);
FAILING_SHIFT(shift_several_over, PAGES, "wwwwrr.pps.dddllllxxlx", 2, 11, 8);
FAILING_SHIFT(shift_several_parts, PARTS, "wwwwrr.pps.ddd", 2, 11, 5);
FAILING_SHIFT(shift_several_uneven, UNEVEN, "wwwwrr.pps.ddd", 2, 11, 1);
FAILING_SHIFT(shift_several_tables, TABLES, "wwwwrr.pps.ddd", 2, 11, 3);
FAILING_SHIFT(shift_several_huge_parts, HUGE_PARTS, "wwwwrr.pps.ddd", 2, 11, 5);
FAILING_AFTER(shift_returns, PAGES, "wwwwwwwww", SHIFTED(3, 5, 2), SHIFTED(2, 5, 3));

/*
 * In the table where a moved mapping ends is a third one, in a gap: it keeps it. The
 * same of a table of tables.
 */
#define THIRD(name, low)						\
	FAILING_AFTER(name, PARTS, low, MOVED(3, 13, UP(3)), MOVED(9, 2, UP(9)))

THIRD(third_untouched, "...eeeeeeww....r");
THIRD(third_first_table, "...wwwweeww....r");
THIRD(third_both_tables, "...wwwwwwww....r");
FAILING_AFTER(third_directory, DIRECTORIES, "..eeew..r", MOVED(2, 7, UP(2)), MOVED(5, 1, UP(5)));

static struct books cleared_books(const struct world *w)
{
	struct counters now;

	read_counters(&now);
	return (struct books) {
		.size = now.size - w->ballast / KB,
		.data = now.page_tables,
		.locked = now.locked,
		.committed = committed_kb() + meminfo_kb("HugePages_Rsvd") * 1000 -
			     meminfo_kb("HugePages_Free"),
	};
}

static const char *check_cleared(const struct world *w, const struct row *row,
				 const struct books *was)
{
	struct books is = cleared_books(w);

	/* Where the kernel chooses, a table may be that of others as well. */
	if ((row->call.flags & FIXED) == MREMAP_MAYMOVE)
		is.data = was->data;
	if (!memcmp(&is, was, sizeof(is)))
		return NULL;
	return complain("size %ld (%ld), tables %ld (%ld), locked %ld (%ld), charged %ld (%ld)",
			is.size, was->size, is.data, was->data, is.locked,
			was->locked, is.committed, was->committed);
}

/* All that a call and the checks need has been faulted in after a refused one. */
static const char *rehearse(struct world *w, const struct row *row)
{
	const int from = row->call.from;
	const struct call call = { from, 1, 1, FIXED, from };
	const bool from_there_on = failure.from_there_on;
	const char *why;

	failure.from_there_on = false;
	why = call_refused(w, &call, EINVAL);
	failure.from_there_on = from_there_on;
	return why;
}

/* Everything is built anew for each allocation, and nothing is left of it then. */
static const char *fail_nth(struct world *w, const struct row *row, struct books *cleared)
{
	const char *why = lay_out(w, row->low, row->high) ?: come_to_layout(w, row);

	if (why)
		return why;
	track(w);
	why = settle(w);
	why = why ?: failure.nth ? fail_call(w, &row->call) : rehearse(w, row);
	why = why ?: clear(w);
	if (!failure.nth)
		*cleared = cleared_books(w);
	return why ?: check_cleared(w, row, cleared);
}

static void fail_each(META, struct world *w, const struct row *row)
{
	const char *why = make_world(w, row->shape);
	struct books cleared;

	/* The first rounds only fault in what is needed later on. */
	failure.nth = 0;
	why = why ?: fail_nth(w, row, &cleared);
	if (is_missing(why))
		SKIP(return, "%s", why);
	why = why ?: fail_nth(w, row, &cleared);
	failure.has_failed = true;
	for (failure.nth = 1; !why && failure.has_failed; failure.nth++) {
		ASSERT_GE(MOST_ALLOCATIONS, failure.nth);
		if (!is_left_out(turn_of(row) + failure.nth))
			why = fail_nth(w, row, &cleared);
	}
	EXPECT_EQ(NULL, why)
		TH_LOG("allocation %d: %s", failure.nth - 1, why);
	/* At least a new mapping has to be allocated. */
	EXPECT_LT(2, failure.nth);
}

TEST_F_TIMEOUT(failing, every_allocation_mended, 300)
{
	NEED_OK(start_failing(false));
	fail_each(_metadata, &self->w, &variant->row);
}

/*
 * A plain munmap() may try for ever once it has got one of several nodes for the tree
 * of VMAs and will never get another; shrinking in place is one.
 */
TEST_F_TIMEOUT(failing, every_allocation_from_one_on_mended, 300)
{
	const struct call *call = &variant->row.call;

	NEED_OK(start_failing(true));
	/* mas_nomem() asks again for ever once it has some of several nodes. */
	NEED(call->flags || call->new >= call->old,
	     "needs an unmapping that gives up without memory");
	fail_each(_metadata, &self->w, &variant->row);
}

/* ---- refusals: the same, and nothing changes ---- */

ROWS(refusal, SKIP_STOCK(ONE_AT_A_TIME))

#define CALL_REFUSAL(name, low, high, from, old, new, flags, to, err)	\
	FIXTURE_VARIANT_ADD(refusal, name) {				\
		{ low, high, { from, old, new, flags, to }, .error = err } \
	}

#define REFUSAL(name, low, high, from, nr, to, err)			\
	CALL_REFUSAL(name, low, high, from, nr, nr, FIXED, to, err)

/* No start. */
REFUSAL(gap_at_start, ".wr", "ddd", 0, 3, UP(0), EFAULT);
REFUSAL(nothing_there, "...w", "ddd", 0, 3, UP(0), EFAULT);

/* Overlap, be it only of gaps. */
REFUSAL(overlap_above, "wrsddd", "", 0, 3, 2, EINVAL);
REFUSAL(overlap_below, "ddwrs", "", 2, 3, 0, EINVAL);
REFUSAL(overlap_itself, "wrs", "", 0, 3, 0, EINVAL);
REFUSAL(overlap_of_gaps, "wr..ddd", "", 0, 4, 3, EINVAL);
REFUSAL(overlap_one_with_gap, "w...ddd", "", 0, 4, 2, EINVAL);

/* A seal anywhere in the source, or in what is to be replaced. */
REFUSAL(sealed_first, "Wrw", "ddd", 0, 3, UP(0), EPERM);
REFUSAL(sealed_second, "wRw", "ddd", 0, 3, UP(0), EPERM);
REFUSAL(sealed_last, "wrW", "ddd", 0, 3, UP(0), EPERM);
REFUSAL(sealed_last_of_many, "wrsplgdorwrwrwrS", "ppppppdddddddddd", 0, 16, UP(0), EPERM);
REFUSAL(sealed_part_of_first, "WWWr", "dddd", 2, 2, UP(2), EPERM);
REFUSAL(sealed_part_of_last, "wrWWW", "ddddd", 0, 3, UP(0), EPERM);
REFUSAL(sealed_after_gap, "w..W", "dddd", 0, 4, UP(0), EPERM);
REFUSAL(sealed_before_gap, "W...", "dddd", 0, 4, UP(0), EPERM);
REFUSAL(sealed_after_split, "wwwrSw", "dddddd", 2, 3, UP(1), EPERM);
REFUSAL(sealed_destination_first, "wrs", "Wdd", 0, 3, UP(0), EPERM);
REFUSAL(sealed_destination_second, "wrs", "dWd", 0, 3, UP(0), EPERM);
REFUSAL(sealed_destination_last, "wrs", "ddW", 0, 3, UP(0), EPERM);
REFUSAL(sealed_destination_reaching_in, "wrs", "SSSdd", 0, 3, UP(2), EPERM);
REFUSAL(sealed_destination_reaching_out, "wrs", "ddWWW", 0, 3, UP(0), EPERM);
REFUSAL(sealed_destination_from_gap_on, "w.rs", "dWWd", 0, 4, UP(0), EPERM);
REFUSAL(sealed_destination_just_above, "wrsdRd", "", 0, 3, 3, EPERM);

/* Who moves alone does not with others nor with a gap. */
REFUSAL(alone_first, "**r", "ddd", 0, 3, UP(0), EFAULT);
REFUSAL(alone_last, "rr*", "ddd", 0, 3, UP(0), EFAULT);
REFUSAL(alone_last_in_part, "rr****", "ddd", 1, 3, UP(0), EFAULT);
REFUSAL(alone_behind_gap, "w..*", "dddd", 0, 4, UP(0), EFAULT);
REFUSAL(alone_before_gap, "**..", "dddd", 0, 4, UP(0), EFAULT);
REFUSAL(alone_rest_before_gap, "****..", "dddd", 2, 4, UP(0), EFAULT);
REFUSAL(sealed_with_registered_destination, "w.rS", "xxxxxx", 0, 4, UP(1), EPERM);

/* With another size, only what may move and has no gaps. */
CALL_REFUSAL(grow_into_gap, "w.", "ddd", 0, 2, 3, FIXED, UP(0), EFAULT);
CALL_REFUSAL(grow_here, "wr", "", 0, 2, 3, 0, 0, EFAULT);
CALL_REFUSAL(shrink_to_gap, "w.s", "ddd", 0, 3, 2, FIXED, UP(0), EFAULT);

ROW_TEST(refusal, pages_mended, PAGES, "uxfbz", 0)
ROW_TEST(refusal, huge_pages_mended, HUGE, "v", 0)

/* ---- random layouts and calls, all of them modelled ---- */

#define SEEDS	6
#define CALLS	14

FIXTURE(random) { };

FIXTURE_VARIANT(random)
{
	enum shape shape;
	unsigned long seed;
};

FIXTURE_VARIANT_ADD(random, pages_1) { PAGES, 1000 };
FIXTURE_VARIANT_ADD(random, pages_2) { PAGES, 2000 };
FIXTURE_VARIANT_ADD(random, pages_3) { PAGES, 3000 };
FIXTURE_VARIANT_ADD(random, parts_of_tables_1) { PARTS, 4000 };
FIXTURE_VARIANT_ADD(random, parts_of_tables_2) { PARTS, 5000 };
FIXTURE_VARIANT_ADD(random, uneven_1) { UNEVEN, 6000 };
FIXTURE_VARIANT_ADD(random, uneven_2) { UNEVEN, 7000 };
FIXTURE_VARIANT_ADD(random, tables) { TABLES, 8000 };
FIXTURE_VARIANT_ADD(random, huge_pages) { HUGE, 9000 };
FIXTURE_VARIANT_ADD(random, parts_of_huge_pages_1) { HUGE_PARTS, 10000 };
FIXTURE_VARIANT_ADD(random, parts_of_huge_pages_2) { HUGE_PARTS, 11000 };
FIXTURE_VARIANT_ADD(random, directories) { DIRECTORIES, 12000 };

FIXTURE_SETUP(random)
{
	SKIP_STOCK(ONE_AT_A_TIME);
}

FIXTURE_TEARDOWN(random) { }

static void pick_layout(char *text, bool seals, int longest)
{
	static const char kinds[] = "wwwwweerrrnoodlgsssqppa........";
	int cell = 0;

	while (cell < HALF) {
		char letter = kinds[pick(sizeof(kinds) - 1)];

		if (seals && one_in(8) && strchr("wrs", letter))
			letter = toupper(letter);
		for (int run = 1 + pick(longest); run && cell < HALF; run--)
			text[cell++] = letter;
	}
	text[HALF] = '\0';
}

/* Usually where something is mapped. */
static int pick_start(const struct world *w)
{
	int cell = pick(CELLS);

	while (!w->cells[cell].is.mapped && !one_in(12))
		cell = pick(CELLS);
	return cell;
}

static int pick_length(const struct world *w, int from, int most)
{
	const int room = end_of_half(w, from) - from;

	if (most > room)
		most = room;
	return 1 + pick(most);
}

static void pick_place(const struct world *w, struct call *call)
{
	const bool may_overlap = call->flags & MREMAP_OVERLAP;

	do {
		call->to = may_overlap ? call->from - 8 + pick(17) : pick(CELLS);
	} while (call->to < 0 || call->to + call->new > end_of_half(w, call->to) ||
		 (overlaps(call) && !may_overlap && !one_in(12)));
}

/* Does the file, and the place, have so many cells from there on? */
static bool has_room(const struct world *w, int from, int cells)
{
	const struct attributes *is = &w->cells[from].is;

	if (from + cells > end_of_half(w, from))
		return false;
	return !is->inode || is->offset / w->unit + cells <= w->filled;
}

static void pick_move(const struct world *w, struct call *call)
{
	call->from = pick_start(w);
	call->old = pick_length(w, call->from, one_in(3) ? HALF / 2 : 7);
	call->new = call->old;
	call->flags = one_in(3) ? KEEP : one_in(3) ? OVERLAP : FIXED;
	pick_place(w, call);
}

static void pick_resize(const struct world *w, struct call *call)
{
	const unsigned long flags[] = { 0, MREMAP_MAYMOVE, FIXED };

	call->from = pick_start(w);
	call->old = pick_length(w, call->from, 4);
	call->new = 1 + pick(6);
	call->flags = flags[pick(3)];
	if (one_in(6) && call->flags == FIXED)
		call->old = 0;
	if (one_in(6)) {
		call->new = call->old;
		call->flags = DONTUNMAP;
	}
	call->to = 0;
	if (fixed(call))
		pick_place(w, call);
}

static void pick_call(const struct world *w, struct call *call)
{
	do {
		*call = (struct call) { 0 };
		if (one_in(3))
			pick_resize(w, call);
		else
			pick_move(w, call);
	} while (!call->new || !has_room(w, call->from, call->new));
}

/* New contents, where there may be some. */
static void write_somewhere(struct world *w)
{
	for (int i = 0; i < CELLS; i++)
		if (is_plain(&w->cells[i]) && one_in(10))
			restamp(w, i);
}

/* Many small mappings: the map count may be what refuses the call. */
static bool near_map_count(const struct world *w, const struct call *call)
{
	const int room = read_long("/proc/sys/vm/max_map_count") - count_vmas();
	int mappings = 1;

	for (int i = 1; i < call->old; i++)
		mappings += w->cells[call->from + i].is.mapped && !w->joined[call->from + i];
	return room < 3 * mappings + 8;
}

static const char *random_calls(struct world *w)
{
	const char *why = NULL;

	for (int nr = 0; !why && nr < CALLS; nr++) {
		struct call call;

		write_somewhere(w);
		pick_call(w, &call);
		if (near_map_count(w, &call))
			continue;
		why = call_as_modelled(w, &call);
		if (why)
			why = complain("call %d: %s", nr, why);
	}
	return why ?: reveal(w);
}

/* Ends when it is told to, with its own copy of all cells as it was. */
static pid_t fork_sharer(META, const struct world *w, int go)
{
	const pid_t child = fork();
	const char *why;
	char byte;

	if (child)
		return child;
	if (read(go, &byte, 1) != 1)
		_exit(0);
	why = check_contents(w);
	if (why)
		TH_LOG("child's copy: %s", why);
	_exit(!!why);
}

static const char *run_seed(META, struct world *w, enum shape shape, unsigned long seed)
{
	const int longest = w->huge ? 8 : 4;
	char low[HALF + 1], high[HALF + 1];
	const char *why;
	int go[2], status;
	pid_t child;

	random_state = seed * 0x9e3779b97f4a7c15ULL + 1;
	pick_layout(low, seed % 3 == 0, longest);
	pick_layout(high, seed % 3 == 0, longest);
	why = build(w, shape, low, high);
	if (seed % 2)
		track(w);
	if (why || pipe2(go, O_CLOEXEC))
		return why ?: "no pipe";
	child = fork_sharer(_metadata, w, go[0]);
	why = settle(w) ?: random_calls(w);
	if (why)
		TH_LOG("seed %lu: %s %s", seed, low, high);
	if (write(go[1], "", 1) != 1 || waitpid(child, &status, 0) != child)
		return why ?: "lost a child";
	return why ?: status ? "child's copy has changed" : NULL;
}

TEST_F_TIMEOUT(random, calls_mended, 300)
{
	static struct world w;
	const char *more = getenv("MREMAP_SEEDS");
	const unsigned long seeds = more ? strtoul(more, NULL, 10) : SEEDS;
	const char *why;

	why = build(&w, variant->shape, "w", "");
	drop_world(&w);
	if (is_missing(why))
		SKIP(return, "%s", why);
	for (unsigned long seed = variant->seed; seed < variant->seed + seeds; seed++) {
		/* What is sealed goes away with the process only. */
		EXPECT_OK_IN_CHILD(run_seed(_metadata, &w, variant->shape, seed));
		ASSERT_EQ(0, _metadata->exit_code)
			TH_LOG("seed %lu", seed);
	}
}

/* ---- page tables ---- */

/*
 * Each allocation fails, and all that follow it: the tables that were made at a
 * place that nothing else is near go again, whether the mapping was to be relocated
 * or to be copied to it.
 */
TEST(no_page_table_stays_where_nothing_went_mended)
{
	const unsigned long src = SRC, dst = SRC + GB + psize();
	unsigned long ret = 0;
	long before;

	SKIP_STOCK(UNDOES_LESS);
	NEED_OK(start_failing(true));
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	ASSERT_EQ(src, map_anon(src, psize()));
	stamp(src, 1);
	before = page_tables_kb();
	for (failure.nth = 1; ret != dst; failure.nth++) {
		ASSERT_GE(MOST_ALLOCATIONS, failure.nth);
		arm_failure();
		ret = move_to(src, psize(), psize(), dst);
		disarm_failure();
		if (ret == dst)
			break;
		ASSERT_EQ(ENOMEM, error_of(ret));
		ASSERT_EQ(before, page_tables_kb())
			TH_LOG("allocation %d", failure.nth);
		ASSERT_OK(check_stamp(src, 1));
	}
	EXPECT_LT(2, failure.nth);
	stop_failing();
	EXPECT_OK(check_stamp(dst, 1));
}

/* A page table empties and fills as pages leave and come. */
TEST(page_tables_are_not_leaked)
{
	const unsigned long src = SRC, dst = SRC + GB;
	const size_t len = 3 * pmd_span();
	const long before = page_tables_kb();

	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	for (size_t offset = 0; offset < bytes(20); offset += bytes(5)) {
		ASSERT_EQ(src, map_anon(src, len));
		for (size_t done = 0; done < len; done += pmd_span() / 4)
			stamp(src + done, done);
		ASSERT_EQ(dst + offset, move_to(src, len, len, dst + offset));
		for (size_t done = 0; done < len; done += pmd_span() / 4)
			ASSERT_OK(check_stamp(dst + offset + done, done));
		ASSERT_EQ(0, munmap(at(dst + offset), len));
	}
	EXPECT_EQ(before, page_tables_kb());
}

/* What stays of a mapping and what is dropped share a table: both let go of it. */
TEST(page_table_of_a_shrinking_move_is_freed)
{
	const unsigned long src = SRC, dst = SRC + GB;
	long before;

	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	ASSERT_EQ(src, map_anon(src, bytes(8)));
	stamp_range(src, bytes(8), 1);
	before = page_tables_kb();
	ASSERT_EQ(dst, move_to(src, bytes(8), bytes(4), dst));
	EXPECT_EQ(before, page_tables_kb());
	EXPECT_OK(check_stamps(dst, bytes(4), 1));
}

/* The same where each has tables of its own, and nothing else is anywhere near. */
TEST(page_tables_of_a_shrinking_move_are_freed)
{
	const unsigned long alone = WINDOW + (6UL << 40);
	const struct {
		unsigned long start;
		size_t kept, dropped;
		unsigned long to;
		int flags;
	} cases[] = {
		{ alone + 2 * MB - 64 * KB, 64 * KB, 2 * MB, alone << 1, MAP_PRIVATE },
		{ alone, 4 * MB, 4 * MB, (alone << 1) + bytes(1), MAP_SHARED },
		{ alone + GB - 4 * MB, 4 * MB, 2 * MB, alone << 1, MAP_PRIVATE },
		{ alone + GB - 4 * MB, 4 * MB, 2 * MB, alone + GB / 2, MAP_PRIVATE },
	};

	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const size_t kept = cases[i].kept, len = kept + cases[i].dropped;
		const unsigned long to = cases[i].to;
		const long before = page_tables_kb();

		ASSERT_EQ(cases[i].start, map_at(cases[i].start, len, PROT_READ | PROT_WRITE,
						 cases[i].flags | MAP_ANONYMOUS, -1, 0));
		stamp_range(cases[i].start, len, 1);
		ASSERT_EQ(to, move_to(cases[i].start, len, kept, to));
		EXPECT_OK(check_stamps(to, kept, 1));
		EXPECT_OK(check_unmapped(cases[i].start, len));
		ASSERT_EQ(0, munmap(at(to), kept));
		EXPECT_EQ(before, page_tables_kb())
			TH_LOG("case %zu", i);
	}
}

/*
 * The first moves its table along, and the second, whose table is another's at its
 * new place as well, leaves its own behind.
 */
TEST(page_tables_of_several_are_freed_mended)
{
	const unsigned long src = WINDOW + (6UL << 40), dst = src << 1;
	const size_t table = pmd_span(), len = table + bytes(4);
	long before;

	SKIP_STOCK(ONE_AT_A_TIME);
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	guard_page(dst + len + psize());
	/* The tables above these two are there for others, too. */
	guard_page(src + GB / 2);
	before = page_tables_kb();
	ASSERT_EQ(src, map_anon(src, len));
	ASSERT_EQ(0, mprotect(at(src + table), bytes(4), PROT_READ));
	stamp_range(src, table, 1);
	ASSERT_OK(check_zero(src + table, bytes(4)));
	ASSERT_EQ(dst, move_to(src, len, len, dst));
	EXPECT_OK(check_stamps(dst, table, 1));
	EXPECT_OK(check_unmapped(src, len));
	ASSERT_EQ(0, munmap(at(dst), len));
	EXPECT_EQ(before, page_tables_kb());
}

/* A table is freed if all that it was for is gone, even in two pieces. */
TEST(page_table_of_two_old_destinations_is_freed_mended)
{
	const unsigned long dst = SRC + GB;
	long before;

	SKIP_STOCK(ONE_AT_A_TIME);
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	/* The upper tables are those of others, too. */
	guard_page(WINDOW);
	for (size_t page = 0; page < 16; page += 8) {
		ASSERT_EQ(SRC + bytes(page), map_anon(SRC + bytes(page), bytes(4)));
		ASSERT_EQ(dst + bytes(page), map_anon(dst + bytes(page), bytes(4)));
	}
	before = page_tables_kb();
	for (size_t page = 0; page < 16; page += 8)
		stamp_range(dst + bytes(page), bytes(4), 1);
	ASSERT_LT(before, page_tables_kb());
	ASSERT_EQ(dst, move_to(SRC, bytes(12), bytes(12), dst));
	EXPECT_EQ(before, page_tables_kb());
	EXPECT_OK(check_zero(dst, bytes(4)));
	EXPECT_OK(check_zero(dst + bytes(8), bytes(4)));
}

/* ---- sparse memory, moved back and forth out of step ---- */

#define ROUNDS		7
#define TOUCHED		200
#define TB		(1024 * GB)

FIXTURE(sparse)
{
	size_t pages[TOUCHED];		/* from the start of the mapping */
	unsigned long places[ROUNDS + 1];
	long tables[ROUNDS + 1];	/* that the same memory has which never moved */
};

FIXTURE_VARIANT(sparse)
{
	size_t len;
	int share;
	bool keep;		/* MREMAP_DONTUNMAP, and what stays is unmapped */
};

static unsigned long map_sparse(unsigned long addr, size_t len, int share)
{
	return map_at(addr, len, PROT_READ | PROT_WRITE,
		      share | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

FIXTURE_SETUP(sparse)
{
	const int table_pages = pmd_span() / psize();

	SKIP_STOCK("stock 6.12 makes page tables where no page goes");
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	random_state = 13;
	for (int i = 0; i < TOUCHED; i++) {
		self->pages[i] = variant->len / pmd_span() * i / TOUCHED * table_pages +
				 pick(table_pages);
	}
	for (int i = 0; i <= ROUNDS; i++) {
		const unsigned long addr = ((i % 2) ? 40 : 20) * TB + bytes(pick(table_pages));

		self->places[i] = addr;
		ASSERT_EQ(addr, map_sparse(addr, variant->len, variant->share));
		for (int page = 0; page < TOUCHED; page++)
			stamp(addr + bytes(self->pages[page]), page);
		self->tables[i] = page_tables_kb();
		ASSERT_EQ(0, munmap(at(addr), variant->len));
	}
}

FIXTURE_TEARDOWN(sparse) { }

FIXTURE_VARIANT_ADD(sparse, terabytes) { .len = 12 * TB, .share = MAP_PRIVATE };
FIXTURE_VARIANT_ADD(sparse, shared_terabytes) { .len = 12 * TB, .share = MAP_SHARED };
FIXTURE_VARIANT_ADD(sparse, kept_terabytes) {
	.len = 12 * TB, .share = MAP_PRIVATE, .keep = true,
};
FIXTURE_VARIANT_ADD(sparse, tables) { .len = 128 * MB, .share = MAP_PRIVATE };
/* Just within one window of 32 page tables, wherever they begin: these are relocated. */
FIXTURE_VARIANT_ADD(sparse, window) { .len = 60 * MB, .share = MAP_PRIVATE };
FIXTURE_VARIANT_ADD(sparse, shared_window) { .len = 60 * MB, .share = MAP_SHARED };

TEST_F(sparse, has_tables_only_where_pages_are_mended)
{
	unsigned long addr = self->places[0], to;

	ASSERT_EQ(addr, map_sparse(addr, variant->len, variant->share));
	for (int page = 0; page < TOUCHED; page++)
		stamp(addr + bytes(self->pages[page]), page);
	for (int round = 1; round <= ROUNDS; round++, addr = to) {
		to = self->places[round];
		ASSERT_EQ(to, do_mremap(addr, variant->len, variant->len,
					FIXED | (variant->keep ? MREMAP_DONTUNMAP : 0), to));
		if (variant->keep)
			ASSERT_EQ(0, munmap(at(addr), variant->len));
		EXPECT_EQ(self->tables[round], page_tables_kb())
			TH_LOG("round %d", round);
		for (int page = 0; page < TOUCHED; page++)
			ASSERT_OK(check_stamp(to + bytes(self->pages[page]), page));
	}
	ASSERT_EQ(0, munmap(at(addr), variant->len));
}

/* ---- old and new place in one mapping ---- */

/* What is unmapped cuts the mapping of which a part moves, below or above. */
static void leave_behind(META, size_t from, size_t to, size_t pages)
{
	const unsigned long src = SRC;
	const size_t low = from < to ? from : to;
	const size_t high = from < to ? to : from;

	ASSERT_EQ(src, map_anon(src, bytes(16)));
	stamp_range(src, bytes(16), 1);
	ASSERT_EQ(src + bytes(to), do_mremap(src + bytes(from), bytes(pages), bytes(pages),
					     FIXED | DONTUNMAP, src + bytes(to)));
	EXPECT_OK(check_stamps(src, bytes(low), 1));
	EXPECT_OK(check_stamps(src + bytes(low + pages),
			       bytes(high - low - pages), 1 + low + pages));
	EXPECT_OK(check_stamps(src + bytes(high + pages),
			       bytes(16 - high - pages), 1 + high + pages));
	EXPECT_OK(check_stamps(src + bytes(to), bytes(pages), 1 + from));
	/* Also what a child inherits, which the mapping has to be known to have pages for. */
	EXPECT_OK_IN_CHILD(check_stamps(src + bytes(to), bytes(pages), 1 + from));
	EXPECT_OK(check_zero(src + bytes(from), bytes(pages)));
	ASSERT_EQ(0, munmap(at(src), bytes(16)));
}

TEST(dontunmap_within_a_mapping)
{
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	for (size_t from = 0; from <= 12; from += 4)
		for (size_t to = 0; to <= 12; to += 4)
			if (from != to)
				leave_behind(_metadata, from, to, 4);
}

/* ---- lengths ---- */

/* All places for a mapping of this length are taken. */
TEST(no_place_to_grow)
{
	const size_t len = 70UL << 40;
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	int nr = 0;

	ASSERT_EQ(SRC, map_at(SRC, psize(), PROT_READ, flags, -1, 0));
	guard_page(SRC + psize());
	while (mmap(NULL, len, PROT_READ, flags, -1, 0) != MAP_FAILED)
		nr++;
	NEED(nr, "needs 70 TB of address space");
	save_state();
	EXPECT_EQ(ENOMEM, error_of(do_mremap(SRC, psize(), len, MREMAP_MAYMOVE, 0)));
	EXPECT_OK(check_state());
}

/* A range as long as may be, nearly all of it a gap. */
TEST(trailing_gap_of_terabytes_mended)
{
	const size_t len = 8UL << 40;
	const unsigned long dst = WINDOW + 2 * len;

	SKIP_STOCK(ONE_AT_A_TIME);
	ASSERT_EQ(SRC, map_anon(SRC, bytes(2)));
	stamp_range(SRC, bytes(2), 1);
	ASSERT_EQ(0, mprotect(at(SRC), psize(), PROT_READ));
	ASSERT_EQ(dst, move_to(SRC, len, len, dst));
	EXPECT_OK(check_stamps(dst, bytes(2), 1));
	EXPECT_OK(check_unmapped(SRC, bytes(2)));
	EXPECT_OK(check_unmapped(dst + bytes(2), psize()));
}

/* ---- moves by less than the length ---- */

/* The address space is filled from there on. */
static unsigned long map_anywhere(size_t len)
{
	return (unsigned long)mmap(NULL, len, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS |
				   MAP_NORESERVE, -1, 0);
}

/* A mapping for which there is not as much room a second time. */
TEST(no_place_for_staging_mended)
{
	size_t len = 130UL << 40;	/* of 256 TB, else 70 of 128 */
	unsigned long src;

	SKIP_STOCK(NO_OVERLAP);
	src = map_anywhere(len);
	if (error_of(src)) {
		len = 70UL << 40;
		src = map_anywhere(len);
	}
	NEED(!error_of(src), "needs 70 TB of address space");
	ASSERT_OK(check_zero(src, psize()));
	ASSERT_OK(check_zero(src + len - psize(), psize()));
	EXPECT_EQ(ENOMEM, error_of(do_mremap(src, len, len, OVERLAP, src - bytes(8))));
	EXPECT_TRUE(is_present(src));
	EXPECT_TRUE(is_present(src + len - psize()));
	EXPECT_OK(check_unmapped(src - bytes(8), bytes(8)));
}

/* No more than 4 MB are free in one piece anywhere, and a few pages are shifted. */
TEST(a_few_pages_need_no_staging_mended)
{
	const size_t len = bytes(16);

	SKIP_STOCK(NO_OVERLAP);
	ASSERT_EQ(SRC, map_anon(SRC, len));
	stamp_range(SRC, len, 1);
	for (size_t hole = 64UL << 40; hole >= 4 * MB; hole /= 2)
		while (!error_of(map_anywhere(hole)))
			;
	EXPECT_EQ(SRC, do_mremap(SRC, len, len, OVERLAP, SRC));
	munmap(at(SRC + len), psize());
	ASSERT_EQ(SRC + psize(), do_mremap(SRC, len, len, OVERLAP, SRC + psize()));
	EXPECT_OK(check_stamps(SRC + psize(), len, 1));
	EXPECT_OK(check_unmapped(SRC, psize()));
}

/* It takes nothing from limits that are exhausted. So many pages are not shifted in place. */
TEST(staging_has_no_limit_mended)
{
	const size_t len = bytes(600);
	struct rlimit limit;

	SKIP_STOCK(NO_OVERLAP);
	ASSERT_EQ(SRC, map_anon(SRC, len));
	ASSERT_EQ(0, mlock(at(SRC), len));
	stamp_range(SRC, len, 1);
	limit = (struct rlimit) { len, len };
	ASSERT_EQ(0, setrlimit(RLIMIT_MEMLOCK, &limit));
	limit = (struct rlimit) { 0, 0 };
	ASSERT_EQ(0, setrlimit(RLIMIT_AS, &limit));
	ASSERT_EQ(0, setrlimit(RLIMIT_DATA, &limit));
	ASSERT_EQ(0, setresuid(-1, 1, -1));
	ASSERT_EQ(SRC + psize(), do_mremap(SRC, len, len, OVERLAP, SRC + psize()));
	EXPECT_OK(check_stamps(SRC + psize(), len, 1));
	EXPECT_OK(check_unmapped(SRC, psize()));
}

/*
 * In the one hole that is large enough is the new place as well, below or above: the
 * staging place is beside it.
 */
TEST(staging_is_not_the_new_place_mended)
{
	const size_t len = 16 * MB;

	SKIP_STOCK(NO_OVERLAP);
	for (int up = 0; up < 2; up++) {
		const unsigned long hole = map_anywhere(3 * len);
		const unsigned long src = up ? hole : hole + 2 * len;
		const unsigned long dst = up ? src + len / 2 : src - len / 2;

		ASSERT_EQ(0, munmap(at(hole), 3 * len));
		ASSERT_EQ(src, map_anon(src, len));
		stamp_range(src, len, 1);
		ASSERT_EQ(dst, do_mremap(src, len, len, OVERLAP, dst));
		EXPECT_OK(check_stamps(dst, len, 1));
		EXPECT_OK(check_unmapped(up ? src : dst + len, len / 2));
		ASSERT_EQ(0, munmap(at(dst), len));
	}
}

/*
 * Two pages that go down into tables that are made for them, far from each other. If there
 * is no memory for the second table, the first page goes back, and its table again.
 * Untouched memory between them is too much to be shifted in place. What fails in place
 * is tried by way of a staging place: that has to fail as well.
 */
static void fail_shifts(META, bool staged)
{
	const unsigned long src = SRC + pmd_span(), dst = src - bytes(1);
	const unsigned long between = src + pmd_span() + bytes(8);
	const size_t behind = 4 * pmd_span(), len = behind + bytes(1);
	unsigned long ret = 0;
	long before;

	SKIP_STOCK(NO_OVERLAP);
	NEED_OK(start_failing(/* from_one_on = */ !staged));
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	ASSERT_EQ(src, map_anon(src, bytes(1)));
	ASSERT_EQ(src + behind, map_anon(src + behind, bytes(1)));
	stamp(src, 1);
	stamp(src + behind, 2);
	if (staged)
		ASSERT_EQ(between, map_anon(between, bytes(600)));
	before = page_tables_kb();
	failure.has_failed = true;
	for (failure.nth = 1; failure.has_failed; failure.nth++) {
		ASSERT_GE(MOST_ALLOCATIONS, failure.nth);
		arm_failure();
		ret = do_mremap(src, len, len, OVERLAP, dst);
		disarm_failure();
		/* What can be asked for again is. */
		if (ret == dst)
			ret = do_mremap(dst, len, len, OVERLAP, src);
		else
			ASSERT_EQ(ENOMEM, error_of(ret));
		ASSERT_EQ(before, page_tables_kb())
			TH_LOG("allocation %d", failure.nth);
		ASSERT_OK(check_stamp(src, 1));
		ASSERT_OK(check_stamp(src + behind, 2));
	}
	EXPECT_LT(4, failure.nth);
	EXPECT_EQ(src, ret);
	stop_failing();
}

TEST(no_page_table_stays_of_a_failed_shift_mended)
{
	fail_shifts(_metadata, /* staged = */ true);
}

TEST(no_page_table_stays_of_a_shift_failed_in_place_mended)
{
	fail_shifts(_metadata, /* staged = */ false);
}

/* Two huge pages, and between them two mappings that share a table. */
static const char *map_between_huge_pages(void)
{
	const size_t span = pmd_span();

	if (map_anon(SRC, span) != SRC || map_anon(SRC + span, span) != SRC + span ||
	    map_anon(SRC + 2 * span, span) != SRC + 2 * span)
		return "cannot map memory";
	stamp_range(SRC, 3 * span, 1);
	madvise(at(SRC + span), span, MADV_NOHUGEPAGE);
	if (mprotect(at(SRC + span + span / 2), span / 2, PROT_READ))
		return "cannot protect memory";
	if (madvise(at(SRC), span, MADV_COLLAPSE) ||
	    madvise(at(SRC + 2 * span), span, MADV_COLLAPSE))
		return "needs huge pages (MADV_COLLAPSE)";
	return NULL;
}

/* Where the small pages have been, a table stays, to which the first huge page comes. */
TEST(huge_pages_shift_to_where_others_have_been_mended)
{
	const size_t span = pmd_span(), len = 3 * span;

	SKIP_STOCK(NO_OVERLAP);
	NEED_OK(map_between_huge_pages());
	ASSERT_EQ(SRC + span, do_mremap(SRC, len, len, OVERLAP, SRC + span));
	EXPECT_OK(check_stamps(SRC + span, len, 1));
	EXPECT_OK(check_unmapped(SRC, span));
	ASSERT_EQ(SRC, do_mremap(SRC + span, len, len, OVERLAP, SRC));
	EXPECT_OK(check_stamps(SRC, len, 1));
	EXPECT_OK(check_unmapped(SRC + len, span));
}

/* And the last one has to go back to where they have been meanwhile. */
TEST(huge_pages_shift_back_to_where_others_have_been_mended)
{
	const size_t span = pmd_span(), len = 3 * span;
	unsigned long ret = 0;

	SKIP_STOCK(NO_OVERLAP);
	NEED_OK(start_failing(/* from_one_on = */ true));
	NEED_OK(map_between_huge_pages());
	munmap(at(SRC), len);
	failure.has_failed = true;
	for (failure.nth = 1; failure.has_failed; failure.nth++) {
		ASSERT_GE(MOST_ALLOCATIONS, failure.nth);
		ASSERT_OK(map_between_huge_pages());
		arm_failure();
		ret = do_mremap(SRC, len, len, OVERLAP, SRC + span);
		disarm_failure();
		if (ret != SRC + span) {
			ASSERT_EQ(ENOMEM, error_of(ret));
			ret = SRC;
		}
		ASSERT_EQ(NULL, check_stamps(ret, len, 1))
			TH_LOG("allocation %d", failure.nth);
		ASSERT_OK(check_unmapped(ret == SRC ? SRC + len : SRC, span));
		ASSERT_EQ(0, munmap(at(ret), len));
	}
	EXPECT_LT(4, failure.nth);
	EXPECT_EQ(SRC + span, ret);
	stop_failing();
}

/* Shifted by a page again and again, up and down: one mapping, no page table more. */
TEST(shifts_leave_nothing_mended)
{
	const size_t len = 3 * pmd_span();
	const unsigned long last = SRC + len - psize();
	struct vma vma;
	long before;

	SKIP_STOCK(NO_OVERLAP);
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	ASSERT_EQ(SRC, map_anon(SRC, len));
	for (size_t done = 0; done < len; done += pmd_span() / 4)
		stamp(SRC + done, done);
	/* In a table of its own while it is up. */
	stamp(last, 1);
	before = page_tables_kb();
	for (int step = 1; step <= 8; step++) {
		const unsigned long up = SRC + step * bytes(1);

		ASSERT_EQ(up, do_mremap(SRC, len, len, OVERLAP, up));
		for (size_t done = 0; done < len; done += pmd_span() / 4)
			ASSERT_OK(check_stamp(up + done, done));
		ASSERT_EQ(SRC, do_mremap(up, len, len, OVERLAP, SRC));
		for (size_t done = 0; done < len; done += pmd_span() / 4)
			ASSERT_OK(check_stamp(SRC + done, done));
		ASSERT_OK(check_stamp(last, 1));
		EXPECT_EQ(before, page_tables_kb());
	}
	ASSERT_TRUE(find_vma(SRC, &vma));
	EXPECT_EQ(SRC, vma.start);
	EXPECT_EQ(SRC + len, vma.end);
}

/*
 * Pages far from each other, shifted on and on: page tables that they have left within the
 * mapping do not stay there.
 */
TEST(sparse_shifts_have_tables_only_where_pages_are_mended)
{
	const size_t len = GB, apart = 8 * pmd_span(), step = pmd_span() + bytes(1);
	unsigned long at_now = SRC;
	long before;

	SKIP_STOCK(NO_OVERLAP);
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	ASSERT_EQ(SRC, map_anon(SRC, len));
	for (size_t done = 0; done < len; done += apart)
		stamp(SRC + done, done);
	before = page_tables_kb();
	for (int i = 0; i < 6; i++) {
		ASSERT_EQ(at_now + step, do_mremap(at_now, len, len, OVERLAP, at_now + step));
		at_now += step;
		/* One for what is above the place that it began in. */
		EXPECT_GE(before + (long)(psize() / KB), page_tables_kb());
	}
	for (size_t done = 0; done < len; done += apart)
		EXPECT_OK(check_stamp(at_now + done, done));
}

/* The first page of the address space is a source like any other. */
TEST(from_the_first_page_on_mended)
{
	SKIP_STOCK(ONE_AT_A_TIME);
	NEED(!map_anon(0, bytes(1)), "needs a mapping at address 0 (vm.mmap_min_addr)");
	ASSERT_EQ(bytes(2), map_anon(bytes(2), bytes(1)));
	stamp(0, 1);
	stamp(bytes(2), 2);
	ASSERT_EQ(SRC, move_to(0, bytes(3), bytes(3), SRC));
	EXPECT_OK(check_stamp(SRC, 1));
	EXPECT_OK(check_unmapped(SRC + bytes(1), psize()));
	EXPECT_OK(check_stamp(SRC + bytes(2), 2));
	EXPECT_OK(check_unmapped(0, bytes(3)));
}

TEST_HARNESS_MAIN
