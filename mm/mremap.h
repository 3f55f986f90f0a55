/* SPDX-License-Identifier: GPL-2.0 */
/*
 * mremap(2): resize and move mappings, and the page tables under them.
 *
 *   mm/mremap_call.c   the system call: it checks, charges, splits and copies
 *                      VMAs, has their pages moved, and commits or reverts
 *   mm/mremap.c        page tables: moves what one VMA has mapped to another
 *                      VMA, and back; also the stack of an execve()
 *   mm/mremap_debug.c  delays, for tests of races
 *
 * The call stands above the page tables: nothing in mm/mremap.c knows of calls,
 * requests or limits. Names such as T1 are those of the conditions in
 * Documentation/mm/mremap.rst, which every change has to keep.
 *
 * A call goes through these phases, and never back to an earlier one:
 *
 *   check     the request, then the VMAs. Nothing is changed, so that what is
 *             wrong with a call is told before it has done anything (C1). Only
 *             a driver's own vm_ops->mremap is asked later, when all is ready,
 *             and a PUD that drop_leaf_pud() cannot drop is found later.
 *   prepare   what can fail while all mappings are still whole: charge (A1),
 *             reserve huge pages (H2), break KSM pages (K1), split the sources
 *             out of their VMAs, and take the VMAs in the destination ranges
 *             off. Then unmap these, which cannot fail.
 *   move      copy the VMAs and move the page tables under them, with the
 *             sources still linked; then take these off for unmapping. Or, if
 *             the entries of each fit in a window, relocate them (R1). Where the
 *             old and the new range overlap, the VMAs always change their places,
 *             if need be with the pages at a staging place meanwhile (O1).
 *   commit    cannot fail. It starts at the point of no return that move_vmas()
 *             and shift_vmas() mark.
 *   revert    undoes prepare and move, last step first (C2). A destination that
 *             was unmapped for MREMAP_FIXED cannot be brought back; the document
 *             lists what else a failure may leave behind.
 *
 * Locks, outermost first: mmap_lock, those of VMAs, i_mmap_rwsem, that of the anon_vma,
 * those of page tables. All of them are held for write. The document says which phase
 * holds which.
 *
 * While hugetlb grows, the lock of its inode is held, too, below those of the VMAs and
 * before all others.
 *
 * TLB contract (T1): between the moment an entry leaves its old place and the
 * end of the flush of that place, the rmap locks are not dropped, on no path.
 * Until the flush a CPU can still write through the old translation, so nobody
 * may clean, free or migrate the page. The document says why these locks are enough.
 * Device mappings and the stack of an execve() are flushed table by table, under the
 * page table locks (T7). hugetlb has its own mover, in mm/hugetlb.c, which takes the
 * same locks and flushes at its end.
 *
 * Sizes and addresses are in bytes and page aligned unless a comment says
 * pages. "src" and "dst" of a call keep their meaning all through it, also while
 * it is being reverted. "Old" and "new" are the two places of an entry that moves;
 * in a move back the old place is where the entry was brought to, and "src" and
 * "dst" of its struct pagetable_move are exchanged likewise.
 */
#ifndef _MM_MREMAP_H
#define _MM_MREMAP_H

#include <linux/hugetlb.h>
#include <linux/mm.h>
#include <linux/userfaultfd_k.h>

#include "internal.h"

/* Page tables: what the call and mm/mremap.c have in common */

/**
 * struct move_stats - what a move of page tables came to
 * @vmas: VMAs that were given a copy or a new place
 * @relocated: of these, VMAs that changed their place instead of being copied
 * @puds: tables of PMDs that moved whole
 * @pmds: page tables that moved whole
 * @huge: other PMD entries that moved whole: huge pages, also those of a device or
 *	  in migration
 * @ptes: single entries, empty ones not counted; of tables that were detached for
 *	  it, only if they were to be counted
 * @flushes: TLB flushes
 */
struct move_stats {
	unsigned long vmas;
	unsigned long relocated;
	unsigned long puds;
	unsigned long pmds;
	unsigned long huge;
	unsigned long ptes;
	unsigned long flushes;
};

/*
 * A VMA of up to so many pages can be relocated to a place that the old one overlaps.
 * For more, it takes less to go by way of a staging place, where tables are detached.
 * Two places that overlap are less than the length apart. If that is no more than what
 * a table maps, they are not congruent, and only single entries move.
 */
#define MAX_ASIDE	min_t(unsigned long, 512, PTRS_PER_PTE)

/**
 * struct entry_aside - an entry that has left its old place and not yet arrived
 * @addr: its old address
 * @pte: what it is
 */
struct entry_aside {
	unsigned long addr;
	pte_t pte;
};

/**
 * struct pagetable_move - a move of page table entries, and how far it got
 * @src: VMA that the entries leave
 * @dst: VMA that they go to; the same VMA for the stack of an execve(), and for one
 *	 that is relocated
 * @start: old address of the first byte to move
 * @end: old address behind the last byte
 * @shift: what added to an old address makes the new one, modulo the word
 * @ptes_only: entries must move one by one, tables stay where they are
 * @in_stack: @src and @dst are one VMA that covers both ranges
 * @new_len: if not 0, @src itself changes its place, see relocate_page_tables(),
 *	     and becomes so long
 * @aside: if not NULL, the two places of a VMA that is relocated overlap: room for all
 *	   its entries, MAX_ASIDE at most, which leave before the first one arrives
 * @among_others: others have left tables, which they need to go back, at the new place
 *		  or in the same table as the old one (O4): only what is in tables moves
 * @leave_empty: on the way back, tables without entries are those of others (O4)
 * @count_ptes: somebody wants to know how many single entries move
 * @back: undoes an earlier move; needs no memory, and does not give up
 * @per_table: flush for each table, before its lock is dropped (T7)
 * @wide_start: start of the first table that moves whole, if @start is in it
 * @wide_end: end of the last one, if @end is in it
 * @own_start: start of the first table that holds entries of the range alone
 * @own_end: end of the last one
 * @new_own_start: as @own_start, at the new place
 * @cursor: old address up to which everything has moved; below @start while
 *          a widened first table is still to come
 * @left_tables: a relocation may have left page tables, or made some in vain
 * @moved_table: a whole table moved, without its entries being looked at
 * @moved_end: end of the last table or huge entry that moved whole; above @end
 *	       if and only if the widened last table did
 * @stats: what has moved
 *
 * A range seldom starts and ends with a page table. Where nothing else is mapped
 * in the span of the first or last table, that one is the range's own, too:
 *
 *	           table 1         table 2         table 3
 *	      |      xxxxxxxxx|xxxxxxxxxxxxxxx|xxxx           |
 *	      ^      ^                            ^           ^
 *	      own_start                           end         own_end
 *	             start
 *	      wide_start                                      wide_end	widened
 *	             wide_start                   wide_end		not widened
 *
 * own_* tell which tables may be detached (D1). If nothing else is mapped at the
 * new place either, and tables can move whole, wide_* have the same values, and
 * tables 1 and 3 move whole like table 2 (W1). Else wide_start is start, wide_end
 * is end, and single entries move in these two. The walk goes from wide_start to
 * wide_end, but the progress that the call is told is within the range (W2).
 */
struct pagetable_move {
	/* Set by the caller, and left alone: */
	struct vm_area_struct *src;
	struct vm_area_struct *dst;
	unsigned long start;
	unsigned long end;
	unsigned long shift;
	bool ptes_only;
	bool in_stack;
	unsigned long new_len;
	struct entry_aside *aside;
	bool among_others;
	bool leave_empty;
	bool count_ptes;
	bool back;

	/* Set before the walk: */
	bool per_table;
	/* By widen_to_tables(), but for a move back, wide_* by the caller: */
	unsigned long wide_start;
	unsigned long wide_end;
	unsigned long own_start;
	unsigned long own_end;
	unsigned long new_own_start;

	/* Set by the walk, and told to the caller: */
	unsigned long cursor;
	bool left_tables;
	bool moved_table;
	unsigned long moved_end;
	struct move_stats stats;
};

int move_page_tables(struct pagetable_move *pm);
int move_page_tables_back(const struct pagetable_move *pm);
bool can_relocate_page_tables(const struct pagetable_move *pm);
int relocate_page_tables(struct pagetable_move *pm);
int relocate_page_tables_back(const struct pagetable_move *pm);
void relocate_empty_vma(struct vm_area_struct *vma, unsigned long addr);
void free_left_tables(struct mm_struct *mm, unsigned long start,
		      unsigned long len, unsigned long floor,
		      unsigned long ceiling, bool page_tables);
void free_empty_tables(struct vm_area_struct *vma, unsigned long start,
		       unsigned long end);
void split_leaf_pud_at(struct vm_area_struct *vma, unsigned long addr);

/* Page tables: for mm/mremap.c alone */

/*
 * What is done under one round of the rmap locks: up to so many page tables whose
 * entries move one by one, or what one table of PMDs holds, or tables of PMDs. With
 * should_yield() that bounds how long others wait for the locks. It also bounds what
 * can be relocated, and struct move_window takes 16 bytes of the stack for each.
 */
#define WINDOW_TABLES	32

/**
 * struct move_window - a stretch of a move, done under one round of locks
 * @old_pud: entry for the table of PMDs that holds it at the old place
 * @new_pud: the same at the new place
 * @old_pmds: the table of PMDs at the old place
 * @new_pmds: the one at the new place
 * @start: old address of the first byte
 * @end: old address behind the last byte
 * @tables: page tables that were not detached and whose entries moved one by one; that
 *	    bounds the window. One of which the first part is empty may not be counted
 * @flush_start: where the TLB may hold what has moved
 * @flush_end: where that ends; not above @flush_start if there is nothing
 * @flush_small: it may hold more than translations of huge pages
 * @spares: page tables for the new place, allocated before the locks are taken;
 *	    those that are left go on to the next window
 * @nr_spares: number of these
 * @detached: entries of the page tables that are out of the tree for the moment,
 *	      the first for the table that holds @start; valid only if @nr_detached
 * @nr_detached: number of these that are not empty
 *
 * In the tree, the entry of a detached table looks empty. So before an empty entry
 * at the old place is skipped, is_detached() has to be asked.
 *
 * The arrays have one more than WINDOW_TABLES because so many tables at one place
 * can be one more at the other, which a move back starts from.
 */
struct move_window {
	pud_t *old_pud;
	pud_t *new_pud;
	pmd_t *old_pmds;
	pmd_t *new_pmds;
	unsigned long start;
	unsigned long end;
	unsigned int tables;

	unsigned long flush_start;
	unsigned long flush_end;
	bool flush_small;

	pgtable_t spares[WINDOW_TABLES + 1];
	unsigned int nr_spares;

	pmd_t detached[WINDOW_TABLES + 1];
	unsigned int nr_detached;
};

/**
 * struct window_plan - what has been planned of a window
 * @tables: page tables of it whose entries move one by one
 * @last_old: the last of these
 * @needed: page tables that have to be made at the new place
 * @last_new: the last entry that a table will be put to
 * @locked: it is made under the rmap locks: nothing is allocated or split
 */
struct window_plan {
	unsigned int tables;
	pmd_t *last_old;
	unsigned int needed;
	pmd_t *last_new;
	bool locked;
};

/* The call: for mm/mremap_call.c alone */

/**
 * struct mremap_request - what the caller asked for
 * @addr: start of the old range, tag removed
 * @old_len: its length; 0 asks for a second view of a shared mapping
 * @new_len: length that the mapping is to have
 * @flags: MREMAP_*
 * @new_addr: where to, if MREMAP_FIXED; a hint, if only MREMAP_DONTUNMAP
 *
 * Written by the system call. In a struct mremap_op, the lengths are rounded up to whole
 * pages: by do_mremap() to small ones, and to huge ones by check_hugetlb() for one mapping
 * and plan_lengths() for several. Nobody writes it after that.
 */
struct mremap_request {
	unsigned long addr;
	unsigned long old_len;
	unsigned long new_len;
	unsigned long flags;
	unsigned long new_addr;
};

/**
 * struct range_survey - what is mapped in a range, or added by a call, in pages
 * @total: all of it
 * @data: what counts for RLIMIT_DATA
 * @locked: what counts for RLIMIT_MEMLOCK
 * @charged: what is charged as committed memory
 */
struct range_survey {
	unsigned long total;
	unsigned long data;
	unsigned long locked;
	unsigned long charged;
};

/*
 * What a list has room for: the two ends of a source and the end of what a
 * shrinking move drops, or the two ends of a destination range. Of several sources
 * the first may be cut at its start, and the last where source and tail end.
 *
 *	VMA          |          s s s s s s s t t t t       |
 *	after        |  below  |   source    |  tail | above|
 *	split at               1             2       3
 */
#define MAX_SPLITS 3

/**
 * struct split_list - where VMAs were split for this call
 * @at: addresses
 * @nr: number of these
 */
struct split_list {
	unsigned long at[MAX_SPLITS];
	unsigned int nr;
};

/**
 * struct unmapping - VMAs that are taken off for unmapping
 * @vmi: iterator over the address space
 * @detached: the VMAs
 * @mas: state for @detached
 * @vms: the core's record of the unmapping
 */
struct unmapping {
	struct vma_iterator vmi;
	struct maple_tree detached;
	struct ma_state mas;
	struct vma_munmap_struct vms;
};

/**
 * struct vma_move - the move of one VMA, or of a part of it
 * @addr: where it is
 * @len: length of the part that moves
 * @dst_addr: where it goes
 * @dst_len: length of the new mapping
 * @src: VMA with the pages to move
 * @vm_flags: flags of the source when the call came
 * @dst: VMA that covers the new range; NULL until copied, and again if pages
 *	 could not go back from there; @src if that was relocated. In a move by way
 *	 of a staging place it covers that, and @dst_addr is its start
 * @tables: the move of the page tables
 * @notified: the new mapping's driver was notified of it
 *
 * Splits may leave @src with what is next to the moved range. find_source() looks
 * it up anew after some; from then on @src starts and ends with the moved range, unless
 * needs_isolation() says that it need not.
 */
struct vma_move {
	/* Set by plan_move() or plan_only_move(), @dst_addr by placement: */
	unsigned long addr;
	unsigned long len;
	unsigned long dst_addr;
	unsigned long dst_len;
	struct vm_area_struct *src;
	vm_flags_t vm_flags;

	/* Set while moving, by move_vmas() or shift_vmas() and what these call: */
	struct vm_area_struct *dst;
	struct pagetable_move tables;
	bool notified;
};

/**
 * struct dst_range - a range that what was mapped before has to leave
 * @start: its first byte
 * @end: the byte behind its last
 * @is_alone: nothing is mapped there, nor right below or above
 * @occupied: something is mapped there
 * @unmapping: the VMAs there
 * @splits: where VMAs were split to cut it out
 *
 * Moves that have no gap between them share one. What is mapped at the place of a
 * gap is left alone:
 *
 *	sources        |  A   |   B   |   gap   |  C  |
 *	destinations   |  A   |   B   |         |  C  |
 *	ranges         <- ranges[0] -->         <- [1]->
 */
struct dst_range {
	/* Set by add_dst_range(), the last two by check_dst_ranges(): */
	unsigned long start;
	unsigned long end;
	bool is_alone;
	bool occupied;

	/* Set by gather_dst_range(): */
	struct unmapping unmapping;
	struct split_list splits;
};

/**
 * struct mremap_op - the call as it goes on
 * @req: what is to be done
 * @mm: where
 * @moves: what is to be moved, in the order of the addresses; at least one, the
 *	   first with the VMA at the old address also if nothing has to move
 * @nr_moves: number of these
 * @only: the one, if there is only one
 * @ranges: ranges to clear for MREMAP_FIXED, in the order of the addresses
 * @nr_ranges: number of these; 0 without MREMAP_FIXED
 * @max_ranges: room for so many
 * @only_range: the one, if there is only one
 * @replaced: what was mapped where something is to go
 * @added: what the call adds to the address space
 * @charged: pages charged for this call and not yet owned by a VMA
 * @owed: pages whose charge is still to be taken over from destination ranges
 * @hugetlb: huge pages reserved for this call and not yet owned by a VMA
 * @splits: where the source's VMAs were split
 * @uffd_unmap_dst: contexts to be told of the unmapped destination
 * @uffd_unmap_src: contexts to be told of unmapped parts of the source
 * @uffd_remap: context to be told of the move
 * @stats: for the tracepoint
 * @unlocked: mmap_lock was already dropped
 * @result: what the system call returns if it succeeds
 * @populate_addr: start of what to fault in after the call
 * @populate_len: length of that
 */
struct mremap_op {
	/* Set by do_mremap(); the checks round the lengths up: */
	struct mremap_request req;
	struct mm_struct *mm;

	/*
	 * Set by do_mremap() for one, and by plan_moves() for several; the number of
	 * ranges by add_dst_range():
	 */
	struct vma_move *moves;
	struct vma_move *only;
	unsigned long nr_moves;
	struct dst_range *ranges;
	struct dst_range *only_range;
	unsigned long nr_ranges;
	unsigned long max_ranges;

	/* Set by the checks: */
	struct range_survey replaced;
	struct range_survey added;

	/* The ledger's, see charge(): */
	unsigned long charged;
	unsigned long owed;

	/* By reserve_hugetlb(): */
	struct hugetlb_growth hugetlb;

	/* Set while preparing, moving and unmapping: */
	struct split_list splits;
	struct list_head uffd_unmap_dst;
	struct list_head uffd_unmap_src;

	/* Set once nothing can fail any more; @stats also if it failed, @result earlier: */
	struct vm_userfaultfd_ctx uffd_remap;
	struct move_stats stats;
	bool unlocked;
	unsigned long result;
	unsigned long populate_addr;
	unsigned long populate_len;
};

/* Tests of races: mm/mremap_debug.c */

/*
 * Where a move can be made to wait, without page table locks. The gaps in which
 * others could do harm, if a lock or a flush was missing, are else too short for
 * a test to hit.
 */
enum delay_point {
	DELAY_RESERVED,		/* hugetlb that grows is reserved, its inode locked */
	DELAY_PLANNED,		/* a window is planned, rmap locks not taken */
	DELAY_DETACHED,		/* tables are detached, the TLBs not flushed */
	DELAY_DETACH_FLUSHED,	/* that is flushed, no entry is at its new place */
	DELAY_MOVED,		/* entries have moved, the TLBs are not flushed */
	NR_DELAY_POINTS,
};

#ifdef CONFIG_DEBUG_MREMAP_DELAY
void mremap_delay(enum delay_point point);
#else
static inline void mremap_delay(enum delay_point point)
{
}
#endif

#endif /* _MM_MREMAP_H */
