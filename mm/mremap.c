// SPDX-License-Identifier: GPL-2.0
/*
 * Page tables that move with their mappings: for mremap(2), and for the stack of
 * an execve(). mm/mremap.h has the locks, the TLB contract and the types.
 *
 * The way down, and what each level takes as a whole if it can:
 *
 *   move_page_tables()       the range
 *     move_next()            what is under one PUD entry: move_pud_tables(), or
 *                            move_under_pud(), a window at a time
 *       move_next_window()   plan_window(), without locks that spin or block
 *         move_under_locks() one round of the rmap locks, and one flush at its end;
 *                            before that one for all tables that are detached
 *           move_at_cursor() PMD entries that move whole: move_pmds()
 *             move_extent()  single entries: move_detached_ptes(), move_ptes()
 *
 *   relocate_page_tables()   one window, and the VMA along with it
 *     move_all_entries()     one round of the rmap locks, and one flush
 *       move_at_cursor()     as above
 *       move_set_aside()     where the two places overlap
 */

#include <linux/cacheflush.h>
#include <linux/fs.h>
#include <linux/hugetlb.h>
#include <linux/mmu_notifier.h>
#include <linux/pgalloc.h>
#include <linux/rmap.h>
#include <linux/sched/signal.h>
#include <linux/swap.h>
#include <linux/swapops.h>

#include <asm/tlb.h>

#include "mremap.h"

/* Finding entries */

/* The entry for the table of PMDs at @addr; NULL if there is no table for it. */
static pud_t *find_pud(struct mm_struct *mm, unsigned long addr)
{
	pgd_t *pgd = pgd_offset(mm, addr);
	p4d_t *p4d;

	if (pgd_none_or_clear_bad(pgd))
		return NULL;
	p4d = p4d_offset(pgd, addr);
	if (p4d_none_or_clear_bad(p4d))
		return NULL;
	return pud_offset(p4d, addr);
}

/* As find_pud(), but NULL as well if the entry is empty. */
static pud_t *find_used_pud(struct mm_struct *mm, unsigned long addr)
{
	pud_t *pud = find_pud(mm, addr);

	/* A leaf looks bad to pud_bad(), but it maps memory: never clear it. */
	if (!pud || pud_leaf(pudp_get(pud)))
		return pud;
	return pud_none_or_clear_bad(pud) ? NULL : pud;
}

/* The size of the empty entry at @addr, where find_used_pud() found nothing. */
static unsigned long get_hole_size(struct mm_struct *mm, unsigned long addr)
{
	pgd_t *pgd = pgd_offset(mm, addr);

	if (pgd_none(*pgd))
		return PGDIR_SIZE;
	return p4d_none(*p4d_offset(pgd, addr)) ? P4D_SIZE : PUD_SIZE;
}

/*
 * split_vma() sees to huge PMDs at the new boundary, but to nothing above. The
 * entry is dropped, see drop_leaf_pud().
 */
void split_leaf_pud_at(struct vm_area_struct *vma, unsigned long addr)
{
	pud_t *pud;

	/* find_used_pud() would take hugetlb's swap-like entries for bad ones. */
	if (is_vm_hugetlb_page(vma) || IS_ALIGNED(addr, PUD_SIZE))
		return;
	pud = find_used_pud(vma->vm_mm, addr);
	if (pud && pud_leaf(pudp_get(pud)))
		split_huge_pud(vma, pud, addr);
}

/*
 * What a PMD entry is. Plans and moves both go by this: what was planned without
 * locks is looked at again under them (T2). move_huge_pmds(), split_huge_pmd() and
 * pte_offset_map() have to know every kind of entry that is huge here.
 */
enum pmd_kind {
	PMD_IS_NONE,	/* nothing; also a page table that is detached */
	PMD_IS_TABLE,	/* a page table */
	PMD_IS_LEAF,	/* anything else: a huge page, also a device's or in migration */
};

static __always_inline enum pmd_kind classify_pmd(pmd_t pmd)
{
	if (pmd_present(pmd) && !pmd_leaf(pmd))
		return PMD_IS_TABLE;
	return pmd_none(pmd) ? PMD_IS_NONE : PMD_IS_LEAF;
}

/* Geometry */

static unsigned long new_addr_of(const struct pagetable_move *pm)
{
	return pm->cursor + pm->shift;
}

/* Are the old and the new place at the same offset in their tables? */
static bool is_congruent(const struct pagetable_move *pm)
{
	return !(pm->shift & ~PMD_MASK);
}

/*
 * Bytes from @addr to the next boundary of @size at the old or the new place, or
 * to the end of what is walked. One whole entry of that size can move only if this
 * is @size.
 */
static unsigned long get_extent_at(const struct pagetable_move *pm,
				   unsigned long addr, unsigned long size)
{
	unsigned long old_room = size - (addr & (size - 1));
	unsigned long new_room = size - ((addr + pm->shift) & (size - 1));

	return min3(old_room, new_room, pm->wide_end - addr);
}

static unsigned long get_extent(const struct pagetable_move *pm,
				unsigned long size)
{
	return get_extent_at(pm, pm->cursor, size);
}

/* Is nothing mapped in [start, end)? This is cheaper than find_vma_intersection(). */
static bool is_unmapped(struct mm_struct *mm, unsigned long start, unsigned long end)
{
	MA_STATE(mas, &mm->mm_mt, start, start);

	return start == end || (!mas_walk(&mas) && mas.last >= end - 1);
}

/*
 * Does the table that holds @addr, where the range starts, hold nothing else
 * below? Only if nothing is mapped there. The stack's VMA covers both ranges, so
 * there the part below may be its own.
 */
static bool can_align_down(struct vm_area_struct *vma, unsigned long addr,
			   bool in_stack)
{
	unsigned long aligned = addr & PMD_MASK;

	if (in_stack && aligned >= vma->vm_start)
		return true;
	if (!in_stack && vma->vm_start != addr)
		return false;
	return is_unmapped(vma->vm_mm, aligned, vma->vm_start);
}

/* Does the table that holds @end, where the range ends, hold nothing above? */
static bool can_align_up(struct vm_area_struct *vma, unsigned long end)
{
	unsigned long aligned = ALIGN(end, PMD_SIZE);

	return vma->vm_end == end &&
	       is_unmapped(vma->vm_mm, end, aligned);
}

/* The same where the range goes to. A VMA that is relocated is not there yet. */
static bool can_align_down_new(const struct pagetable_move *pm)
{
	unsigned long addr = pm->start + pm->shift;

	if (!pm->new_len)
		return can_align_down(pm->dst, addr, pm->in_stack);
	return is_unmapped(pm->dst->vm_mm, addr & PMD_MASK, addr);
}

/*
 * The new mapping may go on above the range, with what it grew by. That is as good
 * as unmapped: no fault can bring an entry there. If it was merged with a neighbour,
 * the entries of that one have a table already, and a table moves only to where
 * there is none. A move back does not ask this: it is widened only if the table at
 * the end did move.
 */
static bool can_align_up_new(const struct pagetable_move *pm)
{
	unsigned long aligned = ALIGN(pm->end + pm->shift, PMD_SIZE);
	unsigned long vma_end = pm->dst->vm_end;

	if (pm->new_len)
		vma_end = pm->start + pm->shift + pm->new_len;
	return aligned <= vma_end ||
	       is_unmapped(pm->dst->vm_mm, vma_end, aligned);
}

#ifndef arch_supports_page_table_move
#define arch_supports_page_table_move arch_supports_page_table_move
static inline bool arch_supports_page_table_move(void)
{
	return IS_ENABLED(CONFIG_HAVE_MOVE_PMD) ||
	       IS_ENABLED(CONFIG_HAVE_MOVE_PUD);
}
#endif

static bool can_move_tables(const struct pagetable_move *pm)
{
	return !pm->ptes_only && !pm->among_others &&
	       arch_supports_page_table_move();
}

static bool can_move_pte_tables(const struct pagetable_move *pm)
{
	return IS_ENABLED(CONFIG_HAVE_MOVE_PMD) && can_move_tables(pm) &&
	       is_congruent(pm);
}

/* See "taking tables out of the tree" below. */
#ifndef arch_can_detach_page_tables
static inline bool arch_can_detach_page_tables(void)
{
	return false;
}
#endif
#ifndef arch_set_moved_pmd
#define arch_set_moved_pmd(pmdp, pmd)	WRITE_ONCE(*(pmdp), pmd)
#endif
/* An entry as it is, also where several that are one for the hardware do not agree. */
#ifndef arch_raw_pte
#define arch_raw_pte(ptep)		ptep_get_lockless(ptep)
#endif

static bool can_detach_tables(const struct pagetable_move *pm)
{
	return arch_can_detach_page_tables() && !pm->per_table && !pm->aside &&
	       !can_move_pte_tables(pm);
}

/*
 * For fewer entries it does not pay to look who else is in their table, nor to
 * take it out of the tree, which takes a flush of more than a few pages.
 */
#define SMALL_MOVE	(64 * PAGE_SIZE)

static bool has_own_table(const struct pagetable_move *pm)
{
	return ALIGN(pm->own_start, PMD_SIZE) + PMD_SIZE <= pm->own_end;
}

/*
 * Find the tables at both ends that hold entries of the range and no others,
 * although the range does not fill them. Where that is so at the new place as
 * well, the walk is widened to them, so that they move whole. A move back has
 * the width that it had forwards.
 */
static void widen_to_tables(struct pagetable_move *pm)
{
	unsigned long head = pm->start & ~PMD_MASK;
	unsigned long tail = -pm->end & ~PMD_MASK;
	bool is_one_table = pm->end - pm->start < PMD_SIZE - head;
	bool may_widen = can_move_pte_tables(pm) && !pm->back;
	bool widen_up = false, widen_down = false;

	if (!pm->back) {
		pm->wide_start = pm->start;
		pm->wide_end = pm->end;
	}
	pm->own_start = pm->start;
	pm->own_end = pm->end;
	pm->new_own_start = pm->start + pm->shift;
	if (pm->end - pm->start < SMALL_MOVE)
		return;

	/* The last table of the address space: its end would be 0. */
	if (pm->end + tail < pm->end || pm->end + pm->shift + tail < tail)
		tail = 0;
	if (tail && !pm->in_stack && can_align_up(pm->src, pm->end)) {
		pm->own_end += tail;
		widen_up = may_widen && can_align_up_new(pm);
	} else if (is_one_table) {
		return;
	}
	if (head && can_align_down(pm->src, pm->start, pm->in_stack)) {
		pm->own_start -= head;
		widen_down = may_widen && can_align_down_new(pm);
	}
	/* The only table is to be widened to at both its ends, or not at all. */
	if (is_one_table && !(widen_up && (widen_down || !head))) {
		widen_up = false;
		widen_down = false;
	}
	if (widen_up)
		pm->wide_end += tail;
	if (widen_down)
		pm->wide_start -= head;
	if (can_detach_tables(pm) && has_own_table(pm) &&
	    can_align_down_new(pm))
		pm->new_own_start &= PMD_MASK;
}

/* Making entries */

static pud_t *alloc_new_pud(struct mm_struct *mm, unsigned long addr)
{
	p4d_t *p4d = p4d_alloc(mm, pgd_offset(mm, addr), addr);

	return p4d ? pud_alloc(mm, p4d, addr) : NULL;
}

/* Locks */

static struct address_space *mapping_of(const struct vm_area_struct *vma)
{
	return vma->vm_file ? vma->vm_file->f_mapping : NULL;
}

/*
 * Both locks, always: with them held, no rmap walk can come between the old and
 * the new place of a page and miss both. All anon_vmas that either VMA can have
 * share one root, and both VMAs map the same file, so the source's locks do for
 * the destination as well, in either direction.
 */
static void take_rmap_locks(struct vm_area_struct *vma)
{
	struct address_space *mapping = mapping_of(vma);

	if (mapping)
		i_mmap_lock_write(mapping);
	if (vma->anon_vma)
		anon_vma_lock_write(vma->anon_vma);
}

static void drop_rmap_locks(struct vm_area_struct *vma)
{
	struct address_space *mapping = mapping_of(vma);

	if (vma->anon_vma)
		anon_vma_unlock_write(vma->anon_vma);
	if (mapping)
		i_mmap_unlock_write(mapping);
}

/*
 * What was written through the old address leaves a virtually indexed cache now:
 * nothing sleeps from here on until the entries have moved. And a flush is made up
 * for that reclaim may owe, for entries that are swap entries by now (T5).
 */
static void lock_for_move(struct vm_area_struct *vma, unsigned long start,
			  unsigned long end)
{
	take_rmap_locks(vma);
	flush_cache_range(vma, start, end);
	flush_tlb_batched_pending(vma->vm_mm);
}

static void assert_rmap_locked(const struct vm_area_struct *vma)
{
	struct address_space *mapping = mapping_of(vma);

	if (mapping)
		i_mmap_assert_write_locked(mapping);
	if (vma->anon_vma)
		lockdep_assert_held_write(&vma->anon_vma->root->rwsem);
}

/*
 * Does somebody wait for a lock that we hold for write? On PREEMPT_RT
 * rwsem_is_contended() tells only whether there are readers or a writer, and the
 * writer is us. The bound on a window's work has to do there.
 */
static bool is_waited_for(struct rw_semaphore *sem)
{
	return !IS_ENABLED(CONFIG_PREEMPT_RT) && rwsem_is_contended(sem);
}

/* Is somebody waiting, for a processor or for the rmap locks? */
static bool should_yield(const struct vm_area_struct *vma)
{
	struct address_space *mapping = mapping_of(vma);

	return need_resched() ||
	       (mapping && is_waited_for(&mapping->i_mmap_rwsem)) ||
	       (vma->anon_vma && is_waited_for(&vma->anon_vma->root->rwsem));
}

/*
 * Two locks of one class, in the order of their addresses: UFFDIO_MOVE takes two
 * in that order, and needs no more than the locks of its own VMAs, which may
 * share tables with the ones that move.
 */
static void lock_both(spinlock_t *one, spinlock_t *other)
	__acquires(one) __acquires(other)
{
	spin_lock(min(one, other));
	if (one != other)
		spin_lock_nested(max(one, other), SINGLE_DEPTH_NESTING);
	else
		__acquire(other);
}

static void unlock_both(spinlock_t *one, spinlock_t *other)
	__releases(one) __releases(other)
{
	if (one != other)
		spin_unlock(max(one, other));
	else
		__release(other);
	spin_unlock(min(one, other));
}

/* Windows */

/* The arrays need not be cleared: their numbers say that nothing is in them. */
static void init_window(struct move_window *win)
{
	win->flush_start = 0;
	win->flush_end = 0;
	win->flush_small = false;
	win->nr_spares = 0;
	win->nr_detached = 0;
}

static pmd_t *table_of_pmds(pud_t *pud, unsigned long addr)
{
	return pmd_offset(pud, addr) - pmd_index(addr);
}

static pmd_t *old_pmd_at(const struct move_window *win, unsigned long addr)
{
	return win->old_pmds + pmd_index(addr);
}

static pmd_t *new_pmd_at(const struct pagetable_move *pm,
			 const struct move_window *win, unsigned long addr)
{
	return win->new_pmds + pmd_index(addr + pm->shift);
}

static void note_flush(struct move_window *win, unsigned long start,
		       unsigned long size, bool small)
{
	if (win->flush_start >= win->flush_end)
		win->flush_start = start;
	win->flush_start = min(win->flush_start, start);
	win->flush_end = max(win->flush_end, start + size);
	win->flush_small |= small;
}

/*
 * Where a table moved, or left the tree, only flush_tlb_range() will do: it also
 * drops what a CPU remembers of tables that were taken away. Where nothing but
 * huge pages moved, an architecture can have something cheaper. That of arc
 * flushes a single huge page, whatever the range.
 */
static bool can_flush_as_huge(const struct move_window *win)
{
	return IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) && !win->flush_small &&
	       (!IS_ENABLED(CONFIG_ARC) ||
		win->flush_end - win->flush_start == PMD_SIZE);
}

static void flush_window(struct pagetable_move *pm, struct move_window *win)
{
	if (win->flush_start >= win->flush_end)
		return;
	if (can_flush_as_huge(win))
		flush_pmd_tlb_range(pm->src, win->flush_start, win->flush_end);
	else
		flush_tlb_range(pm->src, win->flush_start, win->flush_end);
	win->flush_start = 0;
	win->flush_end = 0;
	win->flush_small = false;
	pm->stats.flushes++;
}

/*
 * For a page table lock that is about to be dropped. What maps no ordinary
 * memory may be unmapped by drivers under locks of their own, and the stack's
 * two ranges may overlap: there each table has its own flush, under its lock.
 */
static void flush_if_per_table(struct pagetable_move *pm, struct move_window *win)
{
	if (pm->per_table)
		flush_window(pm, win);
}

/* Make sure of a page table at @new_pmd. It takes a spare one, if any is left. */
static bool install_table(struct mm_struct *mm, struct move_window *win,
			  pmd_t *new_pmd)
{
	pgtable_t *spare;

	if (!pmd_none(pmdp_get_lockless(new_pmd)))
		return true;
	if (!win->nr_spares)
		return false;
	spare = &win->spares[win->nr_spares - 1];
	pmd_install(mm, new_pmd, spare);
	/* Somebody else's fault may have been quicker; then it is still there. */
	if (!*spare)
		win->nr_spares--;
	return true;
}

static bool are_all_none(pte_t *pte, unsigned long nr)
{
	while (nr && pte_none(arch_raw_pte(pte++)))
		nr--;
	return !nr;
}

/* Movers, one for each kind of entry; all under the rmap locks */

/* A moved page counts as changed: its address is new to whoever tracks it. */
static pte_t move_soft_dirty_pte(pte_t pte)
{
	if (!IS_ENABLED(CONFIG_MEM_SOFT_DIRTY))
		return pte;
	return pte_present(pte) ? pte_mksoft_dirty(pte) :
				  pte_swp_mksoft_dirty(pte);
}

/*
 * Move @nr entries, none or not, from @old_pte to @new_pte. Both page table
 * locks are held. Returns whether a translation may be left in a TLB. Where the
 * architecture maps several pages as one, they move together.
 */
static bool move_pte_entries(struct pagetable_move *pm, pte_t *old_pte,
			     pte_t *new_pte, unsigned long nr)
{
	struct mm_struct *mm = pm->src->vm_mm;
	unsigned long old_addr = pm->cursor;
	unsigned long new_addr = new_addr_of(pm);
	unsigned long batch, moved = 0;
	int present = 0;	/* as bool it would cost more for each entry */
	pte_t pte;

	for (; nr; nr -= batch, old_pte += batch, new_pte += batch) {
		batch = 1;
		pte = ptep_get(old_pte);
		if (pte_none(pte))
			goto next;
		if (pte_present(pte))
			batch = min(pte_batch_hint(old_pte, pte), nr);
		pte = get_and_clear_full_ptes(mm, old_addr, old_pte, batch, 0);
		present |= pte_present(pte);
		pte = move_pte(pte, old_addr, new_addr);
		set_ptes(mm, new_addr, new_pte, move_soft_dirty_pte(pte), batch);
		moved += batch;
next:
		old_addr += batch * PAGE_SIZE;
		new_addr += batch * PAGE_SIZE;
	}
	pm->stats.ptes += moved;
	return present;
}

/*
 * Is the table of which @pmd was read still there? The accessed bit of its entry
 * tells nothing about that: MGLRU clears it, and the processor sets it again.
 */
static bool is_same_table(pmd_t *pmdp, pmd_t pmd)
{
	pmd_t now = pmdp_get_lockless(pmdp);

	return pmd_same(now, pmd) ||
	       (classify_pmd(now) == PMD_IS_TABLE &&
		pmd_pgtable(now) == pmd_pgtable(pmd));
}

/*
 * Move the entries of [cursor, cursor + extent) into the table at @new_pmd.
 * Returns -EAGAIN if one of the entries is not, or no longer, a table.
 */
static int move_ptes(struct pagetable_move *pm, struct move_window *win,
		     pmd_t *old_pmd, pmd_t *new_pmd, unsigned long extent)
{
	struct mm_struct *mm = pm->src->vm_mm;
	pmd_t old_table, new_table;
	spinlock_t *old_ptl, *new_ptl;
	pte_t *old_pte, *new_pte;
	int err = -EAGAIN;

	if (!install_table(mm, win, new_pmd))
		return -EAGAIN;
	win->tables += pm->cursor == max(win->start, pm->start) ||
		       IS_ALIGNED(pm->cursor, PMD_SIZE);
	old_table = pmdp_get_lockless(old_pmd);
	new_table = pmdp_get_lockless(new_pmd);
	old_pte = pte_offset_map_nolock(mm, old_pmd, pm->cursor, &old_ptl);
	if (!old_pte)
		return -EAGAIN;
	new_pte = pte_offset_map_nolock(mm, new_pmd, new_addr_of(pm), &new_ptl);
	if (!new_pte)
		goto unmap_old;

	lock_both(old_ptl, new_ptl);
	if (is_same_table(old_pmd, old_table) && is_same_table(new_pmd, new_table)) {
		arch_enter_lazy_mmu_mode();
		if (move_pte_entries(pm, old_pte, new_pte, extent >> PAGE_SHIFT))
			note_flush(win, pm->cursor, extent, true);
		arch_leave_lazy_mmu_mode();
		flush_if_per_table(pm, win);
		err = 0;
	}
	unlock_both(old_ptl, new_ptl);
	pte_unmap(new_pte);
unmap_old:
	pte_unmap(old_pte);
	return err;
}

/* Where entries are plain memory, that of a table is carried over as it is. */
static void move_normal_pmd(struct mm_struct *mm, pmd_t *old_pmd, pmd_t *new_pmd,
			    pmd_t pmd)
{
	if (arch_can_detach_page_tables()) {
		arch_set_moved_pmd(old_pmd, __pmd(0));
		arch_set_moved_pmd(new_pmd, pmd);
	} else {
		pmd_clear(old_pmd);
		pmd_populate(mm, new_pmd, pmd_pgtable(pmd));
	}
}

/*
 * The page tables of up to @nr entries become those of the new ones. Both PMD
 * locks are held. Returns how many moved before the first one that could not.
 */
static unsigned long move_normal_pmds(struct mm_struct *mm, pmd_t *old_pmd,
				      pmd_t *new_pmd, unsigned long nr)
{
	unsigned long i;

	for (i = 0; i < nr; i++) {
		pmd_t pmd = pmdp_get(old_pmd + i);

		if (classify_pmd(pmd) != PMD_IS_TABLE ||
		    !pmd_none(pmdp_get(new_pmd + i)))
			break;
		move_normal_pmd(mm, old_pmd + i, new_pmd + i, pmd);
	}
	return i;
}

/* Under the rmap locks: nobody has cleared an entry only to set it anew. */
static bool is_empty_table(pmd_t *pmd)
{
	bool is_empty;
	pte_t *pte;

	if (classify_pmd(pmdp_get_lockless(pmd)) != PMD_IS_TABLE)
		return false;
	pte = pte_offset_map(pmd, 0);
	if (!pte)
		return false;
	is_empty = are_all_none(pte, PTRS_PER_PTE);
	pte_unmap(pte);
	return is_empty;
}

/* Who goes back with a table that has no entries may take that of somebody else. */
static bool leaves_empty_tables(const struct pagetable_move *pm)
{
	return pm->back && pm->leave_empty;
}

/*
 * Move PMD entries as long as they can move whole, under one round of the locks
 * of the two tables, and the cursor with them. While tables are detached it goes no
 * further than one entry, as the next one may look empty for that. Returns whether
 * there was an entry that moved whole, or an empty one.
 */
static bool move_pmds(struct pagetable_move *pm, struct move_window *win)
{
	struct mm_struct *mm = pm->src->vm_mm;
	unsigned long old_addr = pm->cursor;
	unsigned long new_addr = new_addr_of(pm);
	pmd_t *old_pmd = old_pmd_at(win, old_addr);
	pmd_t *new_pmd = new_pmd_at(pm, win, old_addr);
	unsigned long nr = win->nr_detached ? 1 : (win->end - old_addr) >> PMD_SHIFT;
	unsigned long i = 0, run = 0, tables = 0, huge = 0;
	bool tables_move = can_move_pte_tables(pm);
	bool leave_empty = leaves_empty_tables(pm);
	spinlock_t *old_ptl = pmd_lockptr(mm, old_pmd);
	spinlock_t *new_ptl = pmd_lockptr(mm, new_pmd);

	lock_both(old_ptl, new_ptl);
	for (; i < nr; i += run) {
		enum pmd_kind kind = classify_pmd(pmdp_get(old_pmd + i));

		run = kind == PMD_IS_NONE ||
		      (leave_empty && is_empty_table(old_pmd + i));
		if (run)
			continue;
		if (kind == PMD_IS_TABLE && tables_move) {
			run = move_normal_pmds(mm, old_pmd + i, new_pmd + i,
					       leave_empty ? 1 : nr - i);
			tables += run;
		} else if (kind == PMD_IS_LEAF &&
			   IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE)) {
			run = move_huge_pmds(pm->src, old_addr + i * PMD_SIZE,
					     new_addr + i * PMD_SIZE,
					     old_pmd + i, new_pmd + i, nr - i,
					     old_ptl, new_ptl);
			huge += run;
		}
		if (!run)
			break;
		pm->moved_end = old_addr + (i + run) * PMD_SIZE;
	}
	if (tables || huge)
		note_flush(win, old_addr, i * PMD_SIZE, tables);
	flush_if_per_table(pm, win);
	unlock_both(old_ptl, new_ptl);

	pm->cursor += i * PMD_SIZE;
	pm->moved_table |= tables;
	pm->stats.pmds += tables;
	pm->stats.huge += huge;
	return i;
}

/*
 * Move a table of PMDs, one level up. Fails, with nothing changed, if the old
 * entry is no table or the new one is taken.
 */
#if CONFIG_PGTABLE_LEVELS > 2 && defined(CONFIG_HAVE_MOVE_PUD)
static bool move_normal_pud(struct pagetable_move *pm, struct move_window *win,
			    pud_t *old_pud, pud_t *new_pud)
{
	struct mm_struct *mm = pm->src->vm_mm;
	spinlock_t *old_ptl = pud_lockptr(mm, old_pud);
	spinlock_t *new_ptl = pud_lockptr(mm, new_pud);
	bool moved = false;
	pud_t pud;

	assert_rmap_locked(pm->src);
	lock_both(old_ptl, new_ptl);
	pud = pudp_get(old_pud);
	if (pud_present(pud) && !pud_leaf(pud) && pud_none(*new_pud)) {
		pud_clear(old_pud);
		pud_populate(mm, new_pud, pud_pgtable(pud));
		note_flush(win, pm->cursor, PUD_SIZE, true);
		flush_if_per_table(pm, win);
		pm->moved_table = true;
		pm->moved_end = pm->cursor + PUD_SIZE;
		pm->stats.puds++;
		moved = true;
	}
	unlock_both(old_ptl, new_ptl);
	return moved;
}
#else
static bool move_normal_pud(struct pagetable_move *pm, struct move_window *win,
			    pud_t *old_pud, pud_t *new_pud)
{
	return false;
}
#endif

/* Taking tables out of the tree while their entries move */

/*
 * With a page table out of the tree and the TLBs flushed, no CPU finds its
 * entries any more, nor sets their accessed and dirty bits. So they can be read
 * and cleared by plain loads and stores, several times faster than by atomic
 * exchange. Nobody else looks into the table either: rmap walks wait for the
 * rmap locks, everything else that would walk to it for mmap_lock or the VMA
 * lock. GUP-fast may still be in it, with the old address or, later, the new
 * one. Before it keeps a page it looks again whether the PMD and the PTE are as
 * it had found them, and at the old address there is no table by then.
 *
 * At an offset that is not congruent the entries of one table go to two: those of
 * its lower part to one at the new place, those of its upper part to the next
 * one. For the latter the table itself is used, if there is none yet: the upper
 * part moves down to where it belongs, and the table to the new place. So few
 * tables are allocated, and few are left behind to be freed.
 *
 *	old place	| T  low | high |
 *	new place	    | N   low | high |  N + 1      |
 *
 * The low part of T has gone to the table at N, the high part goes to N + 1, and
 * T with it. A move back gives the table at N to T in the same way, as the high
 * part of N belongs there. So T may leave only if there is a table at N that a
 * move back can take, and that nobody takes away meanwhile. Otherwise T stays at
 * the old place, empty. Either way a move back finds a table wherever it brings
 * an entry to, and needs no memory.
 */

/*
 * What an architecture can have of its own: to write an entry that nobody else writes;
 * to tell whether an entry that moves is present; and where several entries are one
 * for the hardware (arm64), to take those apart that are about to move and cannot be
 * one at the new place, and to make those one that can be and were not. Those without
 * arch_can_detach_page_tables() only have to compile this.
 */
#ifndef arch_set_moved_pte
#define arch_set_moved_pte(ptep, pte)	WRITE_ONCE(*(ptep), pte)
#define arch_moved_pte_present(pte)	pte_present(pte)
#endif
#ifndef arch_unfold_moved_ptes
static inline void arch_unfold_moved_ptes(pte_t *old_pte, pte_t *new_pte,
					  unsigned long nr)
{
}

static inline void arch_fold_moved_ptes(struct mm_struct *mm, unsigned long addr,
					pte_t *pte, unsigned long nr)
{
}
#endif

static pmd_t *detached_at(struct move_window *win, unsigned long addr)
{
	return &win->detached[(addr >> PMD_SHIFT) - (win->start >> PMD_SHIFT)];
}

static bool is_detached(struct move_window *win, unsigned long addr)
{
	return win->nr_detached && !pmd_none(*detached_at(win, addr));
}

/* Is the page table at @addr one with entries of the range and no others? */
static bool is_own_table(const struct pagetable_move *pm, unsigned long addr)
{
	addr &= PMD_MASK;
	return addr >= pm->own_start && addr + PMD_SIZE <= pm->own_end;
}

static bool can_detach_table(const struct pagetable_move *pm, unsigned long addr)
{
	return can_detach_tables(pm) && is_own_table(pm, addr);
}

static void detach_table(struct pagetable_move *pm, struct move_window *win,
			 unsigned long addr, spinlock_t *pmd_ptl)
{
	pmd_t *old_pmd = old_pmd_at(win, addr);
	spinlock_t *ptl = pte_lockptr(pm->src->vm_mm, old_pmd);
	unsigned long start;

	if (ptl != pmd_ptl)
		spin_lock_nested(ptl, SINGLE_DEPTH_NESTING);
	else
		__acquire(ptl);
	*detached_at(win, addr) = pmdp_get(old_pmd);
	pmd_clear(old_pmd);
	if (ptl != pmd_ptl)
		spin_unlock(ptl);
	else
		__release(ptl);
	win->nr_detached++;
	/* That of any address in it drops what a CPU remembers of the table itself. */
	start = max(addr, pm->start);
	note_flush(win, start, min(addr + PMD_SIZE, pm->end) - start, true);
}

static void detach_tables(struct pagetable_move *pm, struct move_window *win)
{
	struct mm_struct *mm = pm->src->vm_mm;
	unsigned long addr;
	spinlock_t *ptl = NULL;

	if (!can_detach_tables(pm))
		return;

	memset(win->detached, 0, sizeof(win->detached));
	ptl = pmd_lock(mm, old_pmd_at(win, win->start));
	for (addr = win->start & PMD_MASK; addr < win->end; addr += PMD_SIZE) {
		if (is_own_table(pm, addr) &&
		    classify_pmd(pmdp_get(old_pmd_at(win, addr))) == PMD_IS_TABLE)
			detach_table(pm, win, addr, ptl);
	}
	spin_unlock(ptl);
	if (win->nr_detached)
		mremap_delay(DELAY_DETACHED);
	flush_window(pm, win);
	if (win->nr_detached)
		mremap_delay(DELAY_DETACH_FLUSHED);
}

/* Put the detached table of @addr to @pmd, whose lock is held. */
static void attach_table(struct mm_struct *mm, struct move_window *win,
			 unsigned long addr, pmd_t *pmd)
{
	pmd_t *table = detached_at(win, addr);

	VM_WARN_ON_ONCE(!pmd_none(pmdp_get(pmd)));
	/* Who finds the table must see what was written into it. */
	smp_wmb();
	pmd_populate(mm, pmd, pmd_pgtable(*table));
	*table = __pmd(0);
	win->nr_detached--;
}

/* Put back the tables that were not used at the new place (D3). */
static void reattach_tables(struct pagetable_move *pm, struct move_window *win)
{
	struct mm_struct *mm = pm->src->vm_mm;
	unsigned long addr = win->start;
	spinlock_t *ptl = NULL;

	if (!win->nr_detached)
		return;
	ptl = pmd_lock(mm, old_pmd_at(win, addr));
	for (; win->nr_detached; addr += PMD_SIZE) {
		if (is_detached(win, addr))
			attach_table(mm, win, addr, old_pmd_at(win, addr));
	}
	spin_unlock(ptl);
}

static unsigned long count_entries(const pte_t *pte, unsigned long nr)
{
	unsigned long i, found = 0;

	for (i = 0; i < nr; i++)
		found += !pte_none(pte[i]);
	return found;
}

static pte_t mark_moved_pte(pte_t pte)
{
	if (arch_moved_pte_present(pte))
		return pte_mksoft_dirty(pte);
	return pte_none(pte) ? pte : pte_swp_mksoft_dirty(pte);
}

/*
 * Move @nr entries out of a detached table, upwards from that of @addr: @new_pte
 * may be below @old_pte in the same table. Each is written at once, as GUP-fast may
 * look at the new one. What is none is moved as well: that takes less than to look.
 * The checks of CONFIG_PAGE_TABLE_CHECK count how often a page is mapped, not
 * where, so nothing changes for them.
 */
static void move_detached_entries(struct pagetable_move *pm, unsigned long addr,
				  pte_t *old_pte, pte_t *new_pte, unsigned long nr)
{
	const pte_t none = __pte(0);	/* a call with PARAVIRT_XXL: not in the loop */
	unsigned long i;

	if (pm->count_ptes)
		pm->stats.ptes += count_entries(old_pte, nr);
	arch_unfold_moved_ptes(old_pte, new_pte, nr);
	/* In a VMA that is marked as changed, all pages read so. */
	if (vma_soft_dirty_enabled(pm->dst)) {
		for (i = 0; i < nr; i++)
			arch_set_moved_pte(old_pte + i, mark_moved_pte(old_pte[i]));
	}
	/* All the cost of such a move is in here. */
#if defined(CONFIG_CC_IS_CLANG) || CONFIG_GCC_VERSION >= 80000
#pragma GCC unroll 8
#endif
	for (i = 0; i < nr; i++) {
		pte_t pte = arch_raw_pte(old_pte + i);

		arch_set_moved_pte(old_pte + i, none);
		arch_set_moved_pte(new_pte + i, pte);
	}
	arch_fold_moved_ptes(pm->dst->vm_mm, addr + pm->shift, new_pte, nr);
}

/* Move [addr, addr + len) of a detached table to the table at its new place. */
static int move_detached_ptes(struct pagetable_move *pm, struct move_window *win,
			      unsigned long addr, unsigned long len)
{
	struct mm_struct *mm = pm->src->vm_mm;
	pte_t *old_pte = pte_offset_kernel(detached_at(win, addr), addr);
	pmd_t *new_pmd = new_pmd_at(pm, win, addr);
	spinlock_t *new_ptl = NULL;
	pte_t *new_pte;

	if (!install_table(mm, win, new_pmd))
		return -EAGAIN;
	new_pte = pte_offset_map_lock(mm, new_pmd, addr + pm->shift, &new_ptl);
	if (!new_pte)
		return -EAGAIN;
	move_detached_entries(pm, addr, old_pte, new_pte, len >> PAGE_SHIFT);
	pte_unmap_unlock(new_pte, new_ptl);
	return 0;
}

/* Can collapse_file() take page tables of @vma away, to make its file's pages huge? */
static bool is_retractable(const struct vm_area_struct *vma)
{
	return vma->vm_file && !vma->anon_vma;
}

/*
 * Would a move back find a table for the old place of the one at @addr? The table
 * that its lower part went to takes that place then. That one must be there, or
 * be planned, and hold entries of the range and no others. It is looked for only
 * in the same table of PMDs.
 */
static bool can_do_without_table(const struct pagetable_move *pm,
				 unsigned long addr, pmd_t *new_pmd,
				 const pmd_t *planned)
{
	unsigned long old_start = addr & PMD_MASK;
	unsigned long new_start = (old_start + pm->shift) & PMD_MASK;

	if (old_start < pm->start || new_start < pm->new_own_start ||
	    new_start + PMD_SIZE > pm->end + pm->shift)
		return false;
	if (is_congruent(pm))
		return true;
	return pmd_index(addr + pm->shift) &&
	       (new_pmd - 1 == planned ||
		!pmd_none(pmdp_get_lockless(new_pmd - 1)));
}

/*
 * Where others have been, tables stay where they are. Only what comes back in a table
 * although it left none is what a huge page became that was split there.
 */
static bool may_take_tables(const struct pagetable_move *pm)
{
	return !pm->among_others || (pm->back && is_congruent(pm));
}

/*
 * May the table at @addr, which can be detached, become the one at the new place
 * of [addr, addr + len), which is @new_pmd? Then these must be its last entries,
 * and must not move up in it. @planned is the last entry of which is known that
 * it will be a table.
 */
static bool may_reuse_table(const struct pagetable_move *pm, unsigned long addr,
			    unsigned long len, pmd_t *new_pmd,
			    const pmd_t *planned)
{
	unsigned long end = addr + len;

	return may_take_tables(pm) &&
	       pte_index(addr + pm->shift) <= pte_index(addr) &&
	       (IS_ALIGNED(end, PMD_SIZE) || end == pm->end) &&
	       !is_retractable(pm->src) &&
	       (pm->back || can_do_without_table(pm, addr, new_pmd, planned));
}

/* Fails, with nothing changed, if there is a table at the new place. */
static bool reuse_detached_table(struct pagetable_move *pm,
				 struct move_window *win, unsigned long addr,
				 unsigned long len)
{
	struct mm_struct *mm = pm->src->vm_mm;
	pmd_t *table = detached_at(win, addr);
	pmd_t *new_pmd = new_pmd_at(pm, win, addr);
	spinlock_t *ptl = pmd_lock(mm, new_pmd);
	bool is_free = pmd_none(pmdp_get(new_pmd));

	if (is_free) {
		pte_t *old_pte = pte_offset_kernel(table, addr);
		pte_t *new_pte = pte_offset_kernel(table, addr + pm->shift);

		move_detached_entries(pm, addr, old_pte, new_pte, len >> PAGE_SHIFT);
		attach_table(mm, win, addr, new_pmd);
	}
	spin_unlock(ptl);
	return is_free;
}

/* The walk */

/*
 * Allocate a table for the new place, before the locks are taken that reclaim takes.
 * A move back finds its tables; see "taking tables out of the tree" above. Two
 * cases are left in which it needs one after all: a huge page that was split at
 * the new place, on an architecture where no table moves whole; and a file's
 * table that was retracted although it had entries of poisoned pages in it.
 */
static int preload_table(struct pagetable_move *pm, struct move_window *win)
{
	pgtable_t table = pte_alloc_one(pm->dst->vm_mm);

	if (!table)
		return -ENOMEM;
	win->spares[win->nr_spares++] = table;
	return 0;
}

static void drop_spare_tables(struct pagetable_move *pm, struct move_window *win)
{
	while (win->nr_spares)
		pte_free(pm->dst->vm_mm, win->spares[--win->nr_spares]);
}

/* Does all of what an entry covers move as one, as far as can be seen without locks? */
static bool moves_whole(const struct pagetable_move *pm,
			const struct move_window *win, unsigned long addr)
{
	pmd_t pmd = pmdp_get_lockless(old_pmd_at(win, addr));
	enum pmd_kind kind = classify_pmd(pmd);

	if (!pmd_none(pmdp_get_lockless(new_pmd_at(pm, win, addr))))
		return false;
	return kind == PMD_IS_LEAF ||
	       (kind == PMD_IS_TABLE && can_move_pte_tables(pm));
}

/* The entry for @addr in a table that can be detached, and may be already. */
static pte_t *own_pte_at(struct move_window *win, unsigned long addr)
{
	pmd_t *pmd = is_detached(win, addr) ? detached_at(win, addr) :
					      old_pmd_at(win, addr);

	return pte_offset_kernel(pmd, addr);
}

/*
 * Are there no entries of the range in the page table of the extent at @addr?
 * mmap_lock and the VMA locks keep empty entries empty. While the rmap locks are not
 * held, one that is being replaced may look so for a moment: then a table too few is
 * planned.
 */
static bool is_empty_extent(const struct pagetable_move *pm,
			    struct move_window *win, unsigned long addr,
			    unsigned long extent)
{
	unsigned long start = max(addr, pm->start);
	unsigned long nr = (min(addr + extent, pm->end) - start) >> PAGE_SHIFT;
	pmd_t *old_pmd = old_pmd_at(win, addr);
	bool is_empty;
	pte_t *pte;

	if (is_detached(win, addr))
		return are_all_none(pte_offset_kernel(detached_at(win, addr), start),
				    nr);
	pte = pte_offset_map(old_pmd, start);
	/* Retracted meanwhile, and then it held no pages; or a huge page. */
	if (!pte)
		return pmd_none(pmdp_get_lockless(old_pmd));
	is_empty = are_all_none(pte, nr);
	pte_unmap(pte);
	return is_empty;
}

/*
 * Does the table at @next have entries for the new table that the one below it goes
 * to, if at all? They come later, but then there is a table for them without an
 * allocation. A move back depends on that: where a table has left, all that comes
 * back may be in the upper one of the two that its entries had gone to.
 */
static bool is_wanted_by_next(const struct pagetable_move *pm,
			      struct move_window *win, unsigned long next)
{
	unsigned long rest = -(next + pm->shift) & ~PMD_MASK;

	/* In another table of PMDs it is in another window, and provides for itself. */
	return rest && next < pm->end && pmd_index(next) &&
	       !is_empty_extent(pm, win, next, rest);
}

static noinline bool has_entries_for_new_table(const struct pagetable_move *pm,
					       struct move_window *win,
					       unsigned long addr,
					       unsigned long extent, bool reuse)
{
	return !is_empty_extent(pm, win, addr, extent) ||
	       (reuse && is_wanted_by_next(pm, win, addr + extent));
}

/*
 * Is a page table needed at the new place of [addr, addr + extent), where none is?
 * Only if there are entries for it. With @reuse it would be the one that they are in,
 * which nobody takes away meanwhile; mostly a look at the first of them will do.
 */
static __always_inline bool needs_new_table(const struct pagetable_move *pm,
					    struct move_window *win,
					    unsigned long addr,
					    unsigned long extent, bool reuse)
{
	return (reuse && !pte_none(ptep_get(own_pte_at(win, addr)))) ||
	       has_entries_for_new_table(pm, win, addr, extent, reuse);
}

/*
 * What a PMD entry's move needs and cannot do under the rmap locks, because
 * reclaim takes them: split a huge page of which only a part moves, and
 * allocate the table that single entries go to. None may be installed yet: it
 * would be in the way of a table that moves whole. What is seen here without
 * locks is looked at again under them.
 */
static int plan_extent(struct pagetable_move *pm, struct move_window *win,
		       struct window_plan *plan, unsigned long addr,
		       unsigned long extent)
{
	pmd_t *old_pmd = old_pmd_at(win, addr);
	pmd_t *new_pmd = new_pmd_at(pm, win, addr);
	enum pmd_kind kind;
	bool reuse;

	if (extent == PMD_SIZE && moves_whole(pm, win, addr))
		return 0;
	kind = classify_pmd(pmdp_get_lockless(old_pmd));
	if (kind == PMD_IS_LEAF) {
		if (plan->locked)
			return -EAGAIN;
		split_huge_pmd(pm->src, old_pmd, addr);
		kind = classify_pmd(pmdp_get_lockless(old_pmd));
	}
	if (kind != PMD_IS_TABLE)
		return kind == PMD_IS_NONE ? 0 : -EAGAIN;

	plan->tables += old_pmd != plan->last_old;
	plan->last_old = old_pmd;
	if (new_pmd == plan->last_new || !pmd_none(pmdp_get_lockless(new_pmd)))
		return 0;
	reuse = can_detach_table(pm, addr) &&
		may_reuse_table(pm, addr, extent, new_pmd, plan->last_new);
	if (!needs_new_table(pm, win, addr, extent, reuse))
		return 0;
	plan->last_new = new_pmd;
	if (reuse)
		return 0;
	plan->needed++;
	if (plan->needed <= win->nr_spares)
		return 0;
	return plan->locked ? -EAGAIN : preload_table(pm, win);
}

/*
 * How far may a window reach that starts at the cursor? Where single entries
 * move, it has so many tables at most; win->detached has room for these.
 */
static unsigned long window_limit(const struct pagetable_move *pm,
				  unsigned long room_end)
{
	unsigned long first = pm->cursor >> PMD_SHIFT;
	unsigned long last = (room_end - 1) >> PMD_SHIFT;

	if (pm->per_table)
		return pm->cursor + get_extent(pm, PMD_SIZE);
	if (can_move_pte_tables(pm) || last - first < WINDOW_TABLES)
		return room_end;
	return (first + WINDOW_TABLES) << PMD_SHIFT;
}

/* Would what comes next be of another page table than the last one allowed? */
static bool is_window_full(const struct move_window *win,
			   const struct window_plan *plan)
{
	return plan->tables >= WINDOW_TABLES &&
	       old_pmd_at(win, win->end) != plan->last_old;
}

/*
 * A table that moves whole needs no plan. A window that begins with one takes all up
 * to its limit unseen: the move stops with -EAGAIN at the first entry that does need
 * a plan, where the next window begins. Any other window ends before such a table; and
 * where memory runs out, unless that is at its start.
 */
static int plan_window(struct pagetable_move *pm, struct move_window *win,
		       unsigned long room_end)
{
	unsigned long limit = window_limit(pm, room_end);
	struct window_plan plan = {};
	unsigned long extent;
	int err;

	win->start = pm->cursor;
	win->end = pm->cursor;
	win->tables = 0;
	while (win->end < limit && !is_window_full(win, &plan)) {
		extent = get_extent_at(pm, win->end, PMD_SIZE);
		if (extent == PMD_SIZE && can_move_pte_tables(pm) &&
		    moves_whole(pm, win, win->end)) {
			if (win->end == win->start)
				win->end = limit;
			return 0;
		}
		err = plan_extent(pm, win, &plan, win->end, extent);
		if (err)
			return win->end > win->start ? 0 : err;
		win->end += extent;
	}
	return 0;
}

/* Move the single entries of [cursor, cursor + extent). */
static int move_extent(struct pagetable_move *pm, struct move_window *win,
		       unsigned long extent)
{
	pmd_t *old_pmd = old_pmd_at(win, pm->cursor);
	pmd_t *new_pmd = new_pmd_at(pm, win, pm->cursor);
	bool detached = is_detached(win, pm->cursor);
	bool reuse;

	if (!detached && pmd_none(pmdp_get_lockless(old_pmd)))
		return 0;
	if (pmd_none(pmdp_get_lockless(new_pmd))) {
		reuse = detached &&
			may_reuse_table(pm, pm->cursor, extent, new_pmd, NULL);
		if (!needs_new_table(pm, win, pm->cursor, extent, reuse))
			return 0;
		if (reuse && reuse_detached_table(pm, win, pm->cursor, extent))
			return 0;
	}
	return detached ? move_detached_ptes(pm, win, pm->cursor, extent) :
			  move_ptes(pm, win, old_pmd, new_pmd, extent);
}

/*
 * Move what is at the cursor, and the cursor past it. With the rmap locks held,
 * mmap_lock and the VMA locks keep everybody else from changing what kind of
 * entry the old one is. A neighbour's fault may still fill the new slot, which is
 * looked at under its lock. -EAGAIN: not as planned.
 */
static int move_at_cursor(struct pagetable_move *pm, struct move_window *win)
{
	unsigned long extent = get_extent(pm, PMD_SIZE);
	unsigned long next = pm->cursor + extent;
	int err;

	assert_rmap_locked(pm->src);
	if (extent == PMD_SIZE && !is_detached(win, pm->cursor) &&
	    move_pmds(pm, win))
		return 0;

	/* Single entries: no others than those of the range. */
	pm->cursor = max(pm->cursor, pm->start);
	extent = min(next, pm->end) - pm->cursor;
	err = move_extent(pm, win, extent);
	if (!err)
		pm->cursor = next;
	return err;
}

/*
 * What was detached is moved first: that takes less than detaching it again. A
 * table counts from its first part on, so that the first part of one more may move
 * before this tells.
 */
static bool is_window_done(const struct pagetable_move *pm,
			   const struct move_window *win)
{
	return pm->cursor >= win->end || win->tables > WINDOW_TABLES ||
	       (!win->nr_detached && should_yield(pm->src));
}

/*
 * One round of the rmap locks. However it ends, what has moved is flushed, and
 * what was detached is back, before they are dropped.
 */
static int move_under_locks(struct pagetable_move *pm, struct move_window *win)
{
	int err;

	mremap_delay(DELAY_PLANNED);
	lock_for_move(pm->src, pm->cursor, win->end);
	detach_tables(pm, win);
	do {
		err = move_at_cursor(pm, win);
	} while (!err && !is_window_done(pm, win));
	reattach_tables(pm, win);
	mremap_delay(DELAY_MOVED);
	flush_window(pm, win);
	drop_rmap_locks(pm->src);
	return err;
}

/*
 * Between plan_window() and move_under_locks() an entry of the range may change,
 * but only from huge to a table, or to none. In a table that is shared, faults and
 * retractions of neighbours may come in between. All of that is rare, so this
 * ends long before:
 */
#define WINDOW_TRIES 8

/* Move the cursor to the first entry that is not empty, or to @end. */
static void skip_empty_pmds(struct pagetable_move *pm,
			    const struct move_window *win, unsigned long end)
{
	unsigned long addr = pm->cursor;

	/* The end of the last table may be that of the address space. */
	while (addr < end && pmd_none(pmdp_get_lockless(old_pmd_at(win, addr))))
		addr += min(PMD_SIZE - (addr & ~PMD_MASK), end - addr);
	pm->cursor = addr;
}

/*
 * Is there no entry in [cursor, cursor + extent), which is of one page table? The
 * rmap locks are not held: who replaces an entry may have cleared it for a moment,
 * but does so under the lock of the table.
 */
static bool is_empty_at_cursor(const struct pagetable_move *pm,
			       const struct move_window *win, unsigned long extent)
{
	pmd_t *old_pmd = old_pmd_at(win, pm->cursor);
	spinlock_t *ptl = NULL;
	bool is_empty;
	pte_t *pte;

	pte = pte_offset_map_lock(pm->src->vm_mm, old_pmd, pm->cursor, &ptl);
	if (!pte)
		return pmd_none(pmdp_get_lockless(old_pmd));
	/* What is passed by is never locked again (T5). */
	flush_tlb_batched_pending(pm->src->vm_mm);
	is_empty = are_all_none(pte, extent >> PAGE_SHIFT);
	pte_unmap_unlock(pte, ptl);
	return is_empty;
}

/*
 * Move the cursor to the first entry that is not empty, nor a page table without
 * entries of the range, or to @end.
 */
static void skip_to_entries(struct pagetable_move *pm,
			    const struct move_window *win, unsigned long end)
{
	unsigned long extent;

	skip_empty_pmds(pm, win, end);
	while (pm->cursor < end) {
		extent = get_extent(pm, PMD_SIZE);
		if (!is_empty_at_cursor(pm, win, extent))
			break;
		pm->cursor += extent;
		cond_resched();
		skip_empty_pmds(pm, win, end);
	}
}

/* Move on in the two tables of PMDs, up to @room_end. */
static int move_next_window(struct pagetable_move *pm, struct move_window *win,
			    unsigned long room_end)
{
	unsigned int tries = WINDOW_TRIES;
	unsigned long start;
	int err;

	skip_empty_pmds(pm, win, room_end);
	if (pm->cursor == room_end)
		return 0;
	if (!pmd_alloc(pm->dst->vm_mm, win->new_pud, new_addr_of(pm)))
		return -ENOMEM;
	win->new_pmds = table_of_pmds(win->new_pud, new_addr_of(pm));

	start = pm->cursor;
	do {
		err = plan_window(pm, win, room_end);
		if (!err)
			err = move_under_locks(pm, win);
	} while (err == -EAGAIN && pm->cursor == start && --tries);
	/* What got on will be tried again from there. */
	return err == -EAGAIN && tries ? 0 : err;
}

/* Move the cursor past the empty entry that it is at: a PUD, or one of a level above. */
static void skip_hole(struct pagetable_move *pm)
{
	unsigned long size = get_hole_size(pm->src->vm_mm, pm->cursor);
	unsigned long room = size - (pm->cursor & (size - 1));

	pm->cursor += min(room, pm->wide_end - pm->cursor);
}

/*
 * Drop a PUD that maps memory itself: such mappings are of files or devices,
 * which fault it in again. What cannot be dropped is refused.
 */
static int drop_leaf_pud(struct vm_area_struct *vma, pud_t *pud,
			 unsigned long addr)
{
	split_huge_pud(vma, pud, addr);
	return pud_leaf(pudp_get(pud)) ? -EINVAL : 0;
}

/* Is what is at the cursor as much as a table of PMDs, which may move whole? */
static bool fits_table_of_pmds(const struct pagetable_move *pm)
{
	return IS_ENABLED(CONFIG_HAVE_MOVE_PUD) && can_move_tables(pm) &&
	       get_extent(pm, PUD_SIZE) == PUD_SIZE;
}

/* Is the next PUD in the same table as the last one, at both places, and whole? */
static bool step_to_next_pud(const struct pagetable_move *pm,
			     struct move_window *win)
{
	if (IS_ALIGNED(pm->cursor, P4D_SIZE) ||
	    IS_ALIGNED(new_addr_of(pm), P4D_SIZE) ||
	    get_extent(pm, PUD_SIZE) != PUD_SIZE)
		return false;
	win->old_pud++;
	win->new_pud++;
	return true;
}

/*
 * Move tables of PMDs as long as they can move whole, in one window, and the
 * cursor with them. Returns whether there was one.
 */
static bool move_pud_tables(struct pagetable_move *pm, struct move_window *win)
{
	bool moved = false;

	lock_for_move(pm->src, pm->cursor, pm->wide_end);
	while (move_normal_pud(pm, win, win->old_pud, win->new_pud)) {
		moved = true;
		pm->cursor += PUD_SIZE;
		if (!step_to_next_pud(pm, win) || should_yield(pm->src) ||
		    leaves_empty_tables(pm))
			break;
	}
	mremap_delay(DELAY_MOVED);
	flush_window(pm, win);
	drop_rmap_locks(pm->src);
	return moved;
}

/*
 * There is no table of PMDs at the new place. Move the cursor to the first entry up to
 * @end that needs one, and make what is above that table. That is rare: inlined, it
 * would cost the common path registers.
 */
static noinline int make_new_pud(struct pagetable_move *pm, struct move_window *win,
				 unsigned long end)
{
	bool moves_as_one = fits_table_of_pmds(pm);

	/* Tables that can move whole are not looked into. */
	if (!moves_as_one && can_move_pte_tables(pm))
		skip_empty_pmds(pm, win, end);
	else if (!moves_as_one)
		skip_to_entries(pm, win, end);
	if (win->new_pud || pm->cursor == end)
		return 0;
	win->new_pud = alloc_new_pud(pm->dst->vm_mm, new_addr_of(pm));
	return win->new_pud ? 0 : -ENOMEM;
}

/*
 * Find the entry for the table of PMDs at the new place of the cursor. A move back
 * makes none: what it brings back has left tables of these levels behind, or takes
 * its own along.
 */
static __always_inline int find_new_pud(struct pagetable_move *pm,
					struct move_window *win, unsigned long end)
{
	win->new_pud = find_pud(pm->dst->vm_mm, new_addr_of(pm));
	if (pm->back || (win->new_pud && !pud_none(pudp_get(win->new_pud))))
		return 0;
	/* Where page tables can move whole, empty entries are all there is to skip. */
	if (win->new_pud && can_move_pte_tables(pm))
		return 0;
	return make_new_pud(pm, win, end);
}

/* Is there a table of PMDs that has to be left, as no entry is below it? */
static bool has_only_tables(struct pagetable_move *pm, const struct move_window *win,
			    unsigned long end)
{
	unsigned long start = pm->cursor;
	bool is_empty;

	if (!leaves_empty_tables(pm))
		return false;
	skip_to_entries(pm, win, end);
	is_empty = pm->cursor == end;
	pm->cursor = start;
	return is_empty;
}

/*
 * There is no place for a return, so there is to be nothing that returns. If there is
 * after all, it stays.
 */
static int pass_by_nothing(struct pagetable_move *pm, const struct move_window *win,
			   unsigned long end)
{
	skip_to_entries(pm, win, end);
	return WARN_ON_ONCE(pm->cursor != end) ? -ENOMEM : 0;
}

/* Move what the table of PMDs at the cursor has up to @end, or the first part of it. */
static int move_under_pud(struct pagetable_move *pm, struct move_window *win,
			  unsigned long end)
{
	int err;

	win->old_pmds = table_of_pmds(win->old_pud, pm->cursor);
	err = find_new_pud(pm, win, end);
	if (err || pm->cursor == end)
		return err;
	if (win->new_pud && fits_table_of_pmds(pm) && !has_only_tables(pm, win, end) &&
	    move_pud_tables(pm, win))
		return 0;
	if (win->new_pud && (!pm->back || !pud_none(pudp_get(win->new_pud))))
		return move_next_window(pm, win, end);
	return pass_by_nothing(pm, win, end);
}

/* Move what there is under the PUD at the cursor, or the first part of it. */
static int move_next(struct pagetable_move *pm, struct move_window *win)
{
	unsigned long end = pm->cursor + get_extent(pm, PUD_SIZE);
	int err = 0;
	pud_t pud;

	win->old_pud = find_used_pud(pm->src->vm_mm, pm->cursor);
	if (!win->old_pud) {
		skip_hole(pm);
		return 0;
	}

	/* A leaf may be gone by now, with the device; a table stays one. */
	pud = pudp_get(win->old_pud);
	if (!pud_none(pud) && !pud_leaf(pud))
		return move_under_pud(pm, win, end);
	if (!pud_none(pud))
		err = drop_leaf_pud(pm->src, win->old_pud, pm->cursor);
	if (!err)
		pm->cursor = end;
	return err;
}

/* A move back ends when all is back. The stack of an execve() is small. */
static bool is_killed(const struct pagetable_move *pm)
{
	return !pm->back && !pm->in_stack && fatal_signal_pending(current);
}

static int move_hugetlb(struct pagetable_move *pm)
{
	unsigned long len = pm->end - pm->cursor;
	unsigned long moved = move_hugetlb_page_tables(pm->src, pm->dst,
						       pm->cursor,
						       new_addr_of(pm), len);

	/* It may report more than was asked for, for tables that were empty. */
	pm->cursor += min(moved, len);
	return pm->cursor == pm->end ? 0 : -ENOMEM;
}

static void begin_move(struct pagetable_move *pm, struct move_window *win,
		       struct mmu_notifier_range *range)
{
	pm->per_table = pm->in_stack || (pm->src->vm_flags & VM_SPECIAL);
	init_window(win);
	widen_to_tables(pm);
	pm->cursor = pm->wide_start;
	mmu_notifier_range_init(range, MMU_NOTIFY_UNMAP, 0, pm->src->vm_mm,
				pm->wide_start, pm->wide_end);
	mmu_notifier_invalidate_range_start(range);
}

static void end_move(struct pagetable_move *pm, struct move_window *win,
		     struct mmu_notifier_range *range)
{
	mmu_notifier_invalidate_range_end(range);
	drop_spare_tables(pm, win);
	pm->cursor = min(pm->cursor, pm->end);
}

/**
 * move_page_tables - move the page table entries of a range
 * @pm: from where to where; tells in @pm->cursor how far it got
 *
 * Everything that is mapped in [@pm->start, @pm->end) goes to the same place
 * shifted by @pm->shift: pages, swap and migration entries, markers. Tables
 * whose entries moved one by one stay where they are, but for those that became
 * tables of the new place.
 *
 * Context: mmap_lock held for write on entry and exit, both VMAs write-locked.
 *	    May sleep; takes i_mmap_rwsem and the anon_vma lock by itself.
 * Return: 0, or -ENOMEM, -EINVAL, or -EINTR for a process that was killed, with
 *	   everything below @pm->cursor moved and nothing from there on;
 *	   move_page_tables_back() undoes that.
 */
int move_page_tables(struct pagetable_move *pm)
{
	struct mmu_notifier_range range;
	/* Large; init_window() sets what has to be set. */
	struct move_window win __uninitialized;
	int err = 0;

	pm->cursor = pm->start;
	if (pm->cursor == pm->end)
		return 0;
	mmap_assert_write_locked(pm->src->vm_mm);
	if (is_vm_hugetlb_page(pm->src))
		return move_hugetlb(pm);

	begin_move(pm, &win, &range);
	while (!err && pm->cursor < pm->wide_end) {
		cond_resched();
		err = is_killed(pm) ? -EINTR : move_next(pm, &win);
	}
	end_move(pm, &win, &range);
	/* A table that kept changing under us: as good as no memory for it. */
	return err == -EAGAIN ? -ENOMEM : err;
}

/*
 * Undo a move that failed. The extents are the same ones, so what moved as a
 * whole finds its old slot empty, and what moved by entries finds its old table,
 * or brings one along. The last table is taken for one of the range alone only
 * if it did move as a whole: else what is there now may be a neighbour's. Tables
 * may go back whole also where they had to stay: entries that moved are marked.
 */
int move_page_tables_back(const struct pagetable_move *pm)
{
	struct pagetable_move back = {
		.src = pm->dst,
		.dst = pm->src,
		.start = pm->start + pm->shift,
		.end = pm->cursor + pm->shift,
		.shift = -pm->shift,
		.wide_start = pm->wide_start + pm->shift,
		.wide_end = max(pm->cursor, pm->moved_end) + pm->shift,
		.among_others = pm->among_others,
		.leave_empty = pm->leave_empty,
		.back = true,
	};

	/* It failed in the widened first table: nothing of the range moved. */
	if (pm->cursor <= pm->start)
		return 0;
	return move_page_tables(&back);
}

/* Relocating a VMA: its entries and its address change at one moment */

/**
 * can_relocate_page_tables - can all of a move be done in one window?
 * @pm: from where to where
 *
 * Rmap walks reckon with one address for a page, which they get from vm_start and
 * vm_pgoff of its VMA. So where the VMA itself changes its place, all entries have
 * to do so under one round of the rmap locks. This tells by the addresses alone
 * whether these can be so few; what relocate_page_tables() finds may say no still.
 *
 * Return: whether relocate_page_tables() is worth a try.
 */
bool can_relocate_page_tables(const struct pagetable_move *pm)
{
	unsigned long len = pm->end - pm->start;
	unsigned long first = pm->start >> PMD_SHIFT;
	unsigned long last = (pm->end - 1) >> PMD_SHIFT;

	return len <= PUD_SIZE - (pm->start & ~PUD_MASK) &&
	       len <= PUD_SIZE - ((pm->start + pm->shift) & ~PUD_MASK) &&
	       (can_move_pte_tables(pm) || last - first < WINDOW_TABLES);
}

/* Is all of the range one table of PMDs, which can move whole? */
static bool is_one_pud_table(const struct pagetable_move *pm,
			     const struct move_window *win)
{
	return fits_table_of_pmds(pm) && pud_none(pudp_get(win->new_pud));
}

/*
 * How many entries from @addr on can move whole, whatever they are? Before the locks
 * are taken it is hoped that all new slots are free.
 */
static unsigned long count_whole_pmds(const struct pagetable_move *pm,
				      const struct move_window *win,
				      unsigned long addr, bool locked)
{
	pmd_t *new_pmd = new_pmd_at(pm, win, addr);
	unsigned long nr = 0, max = (pm->wide_end - addr) >> PMD_SHIFT;

	if (!can_move_pte_tables(pm) || addr & ~PMD_MASK)
		return 0;
	if (!locked)
		return max;
	while (nr < max && pmd_none(pmdp_get_lockless(new_pmd + nr)))
		nr++;
	return nr;
}

/*
 * What plan_window() does for a part is done here for all of the range. -EAGAIN
 * says that there is more to it than one window can take. What comes back from a
 * place that is not congruent can be in one table more.
 */
static int plan_all(struct pagetable_move *pm, struct move_window *win, bool locked)
{
	struct window_plan plan = { .locked = locked };
	unsigned long extent;
	int err;

	win->start = pm->cursor;
	win->tables = 0;
	for (win->end = win->start; win->end < pm->wide_end; win->end += extent) {
		extent = count_whole_pmds(pm, win, win->end, locked) << PMD_SHIFT;
		if (extent)
			continue;
		extent = get_extent_at(pm, win->end, PMD_SIZE);
		if (!pm->back && is_window_full(win, &plan))
			return -EAGAIN;
		err = plan_extent(pm, win, &plan, win->end, extent);
		if (err)
			return err;
	}
	pm->left_tables |= plan.tables;
	return 0;
}

/*
 * Is there a table of PMDs, or room for one that went as a whole? What has left neither
 * behind was nothing.
 */
static bool is_place_for_return(const struct pagetable_move *pm,
				const struct move_window *win)
{
	return win->new_pud &&
	       (!pud_none(pudp_get(win->new_pud)) || fits_table_of_pmds(pm));
}

/* Find the tables, and make those that are missing. */
static int plan_relocation(struct pagetable_move *pm, struct move_window *win)
{
	struct mm_struct *mm = pm->src->vm_mm;
	unsigned long first;
	int err;

	win->old_pud = find_used_pud(mm, pm->cursor);
	if (!win->old_pud || pud_none(pudp_get(win->old_pud))) {
		pm->cursor = pm->wide_end;
		return 0;
	}
	if (pud_leaf(pudp_get(win->old_pud)))
		return -EAGAIN;
	win->old_pmds = table_of_pmds(win->old_pud, pm->cursor);
	/* What came as a table of PMDs goes back as one, whatever has become of it. */
	if (!pm->back)
		skip_empty_pmds(pm, win, pm->wide_end);
	if (pm->cursor == pm->wide_end)
		return 0;
	first = pm->cursor;
	err = find_new_pud(pm, win, pm->wide_end);
	if (err)
		return err;
	if (pm->back && !is_place_for_return(pm, win))
		err = pass_by_nothing(pm, win, pm->wide_end);
	if (err || pm->cursor == pm->wide_end)
		return err;
	win->new_pmds = NULL;
	if (is_one_pud_table(pm, win))
		return 0;
	if (!pmd_alloc(mm, win->new_pud, new_addr_of(pm)))
		return -ENOMEM;
	win->new_pmds = table_of_pmds(win->new_pud, new_addr_of(pm));
	/* What was passed by are page tables without entries, if anything. */
	pm->left_tables = pm->cursor != first;
	return plan_all(pm, win, /* locked = */ false);
}

/* Set the entries aside that are under the PMD entry at @addr, up to @end. */
static unsigned long set_entries_aside(struct pagetable_move *pm,
				       struct move_window *win, unsigned long addr,
				       unsigned long end, unsigned long nr)
{
	struct mm_struct *mm = pm->src->vm_mm;
	struct entry_aside *entry = pm->aside + nr;
	spinlock_t *ptl = NULL;
	pte_t *start, *pte;

	start = pte_offset_map_lock(mm, old_pmd_at(win, addr), addr, &ptl);
	/* No table: it was planned that there is no huge page either. */
	if (!start)
		return nr;
	arch_enter_lazy_mmu_mode();
	for (pte = start; addr < end; pte++, addr += PAGE_SIZE) {
		if (pte_none(ptep_get(pte)))
			continue;
		entry->addr = addr;
		entry->pte = ptep_get_and_clear(mm, addr, pte);
		if (pte_present(entry->pte))
			note_flush(win, addr, PAGE_SIZE, true);
		entry++;
	}
	arch_leave_lazy_mmu_mode();
	pte_unmap_unlock(start, ptl);
	return entry - pm->aside;
}

/* Let entries arrive that go to one table, and return how many those are. */
static unsigned long place_entries(struct pagetable_move *pm,
				   struct move_window *win,
				   const struct entry_aside *entry, unsigned long max)
{
	struct mm_struct *mm = pm->src->vm_mm;
	unsigned long table = (entry->addr + pm->shift) & PMD_MASK;
	pmd_t *pmd = new_pmd_at(pm, win, entry->addr);
	spinlock_t *ptl = NULL;
	unsigned long nr, addr;
	pte_t *start, pte;

	install_table(mm, win, pmd);
	start = pte_offset_map_lock(mm, pmd, table, &ptl);
	if (WARN_ON_ONCE(!start))
		return max;
	arch_enter_lazy_mmu_mode();
	for (nr = 0; nr < max; nr++, entry++) {
		addr = entry->addr + pm->shift;
		if (addr - table >= PMD_SIZE)
			break;
		pte = move_pte(entry->pte, entry->addr, addr);
		set_pte_at(mm, addr, start + pte_index(addr),
			   move_soft_dirty_pte(pte));
	}
	arch_leave_lazy_mmu_mode();
	pte_unmap_unlock(start, ptl);
	return nr;
}

/*
 * Where the two places overlap, all entries leave the old one, and the TLB is flushed,
 * before the first arrives: none is replaced by another one that is valid, which some
 * architectures do not allow. The plan has been made under these locks, and what it
 * found stays: of a table that holds others, too, nobody can take away what is left.
 */
static void move_set_aside(struct pagetable_move *pm, struct move_window *win)
{
	unsigned long addr, end, nr = 0, placed = 0;

	assert_rmap_locked(pm->src);
	for (addr = pm->cursor; addr < pm->end; addr = end) {
		end = min(ALIGN(addr + 1, PMD_SIZE), pm->end);
		nr = set_entries_aside(pm, win, addr, end, nr);
	}
	flush_window(pm, win);
	mremap_delay(DELAY_DETACH_FLUSHED);
	while (placed < nr)
		placed += place_entries(pm, win, pm->aside + placed, nr - placed);
	pm->stats.ptes += nr;
	pm->cursor = pm->end;
}

/*
 * Once all has been found as planned under the locks, nothing can fail any more:
 * what it takes is there, and whoever could change entries of this VMA waits for
 * these locks, for mmap_lock or for the VMA lock. What is under one PMD entry moves
 * or fails as a whole, and need not be looked at before.
 */
static int move_all_entries(struct pagetable_move *pm, struct move_window *win)
{
	bool is_one = !pm->aside &&
		      get_extent(pm, PMD_SIZE) == pm->wide_end - pm->cursor;
	int err = 0;

	if (pm->cursor == pm->wide_end)
		return 0;
	if (!win->new_pmds) {
		if (!move_normal_pud(pm, win, win->old_pud, win->new_pud))
			return -EAGAIN;
		pm->cursor = pm->wide_end;
		return 0;
	}
	if (!is_one)
		err = plan_all(pm, win, /* locked = */ true);
	if (err)
		return err;
	if (pm->aside)
		move_set_aside(pm, win);
	detach_tables(pm, win);
	while (!err && pm->cursor < pm->wide_end)
		err = move_at_cursor(pm, win);
	reattach_tables(pm, win);
	pm->left_tables |= win->tables;
	/* All was looked at before, but for a single part, which moves or does not. */
	if (!is_one && WARN_ON_ONCE(err))
		return -EIO;
	return err;
}

/**
 * relocate_page_tables - move a VMA with all of its page table entries
 * @pm: from where to where: all of @pm->src, which becomes @pm->new_len bytes long
 *
 * The tree of VMAs has @pm->src at both places while this is called.
 *
 * Context: mmap_lock held for write on entry and exit, the VMA write-locked. May
 *	    sleep; takes i_mmap_rwsem and the anon_vma lock by itself.
 * Return: 0; or -EAGAIN or -ENOMEM, with no entry moved: then move_page_tables(), to a
 *	   copy of the VMA, may still do it. After a warning entries may be lost.
 */
int relocate_page_tables(struct pagetable_move *pm)
{
	struct vm_area_struct *vma = pm->src;
	struct mmu_notifier_range range;
	struct move_window win __uninitialized;
	int err;

	mmap_assert_write_locked(vma->vm_mm);
	pm->left_tables = true;
	begin_move(pm, &win, &range);
	err = plan_relocation(pm, &win);
	if (!err) {
		mremap_delay(DELAY_PLANNED);
		lock_for_move(vma, pm->cursor, pm->wide_end);
		err = move_all_entries(pm, &win);
		if (!err) {
			vma_relocate(vma, pm->start + pm->shift, pm->new_len);
			pm->stats.relocated = 1;
		}
		mremap_delay(DELAY_MOVED);
		flush_window(pm, &win);
		drop_rmap_locks(vma);
	}
	end_move(pm, &win, &range);
	/* That some have moved is not to happen, but no page is to be lost if it does. */
	if (err == -EIO)
		err = move_page_tables_back(pm) ?: -EAGAIN;
	return err;
}

/**
 * relocate_page_tables_back - undo relocate_page_tables()
 * @pm: what it was called with, when it succeeded
 *
 * Context: as for relocate_page_tables(). The tree of VMAs still has the VMA at
 *	    both places.
 * Return: 0; it needs no memory, with the exceptions of preload_table(), in which
 *	   it may fail with -ENOMEM. A slot that it left empty may have a table by
 *	   now, of another VMA that was relocated to there and back.
 */
int relocate_page_tables_back(const struct pagetable_move *pm)
{
	struct pagetable_move back = {
		.src = pm->src,
		.dst = pm->dst,
		.start = pm->start + pm->shift,
		.end = pm->end + pm->shift,
		.shift = -pm->shift,
		.aside = pm->aside,
		.among_others = pm->among_others,
		.new_len = pm->end - pm->start,
		.wide_start = pm->wide_start + pm->shift,
		.wide_end = max(pm->end, pm->moved_end) + pm->shift,
		.back = true,
	};

	return relocate_page_tables(&back);
}

/*
 * Is there a table in [start, end) that can be freed, because it covers nothing else
 * that is mapped? @size is what a table covers.
 */
static bool has_unused_table(unsigned long start, unsigned long end,
			     unsigned long floor, unsigned long ceiling,
			     unsigned long size)
{
	unsigned long first = ALIGN_DOWN(start, size);
	unsigned long last = ALIGN(end, size) - 1;

	if (first < floor)
		first += size;
	if (last > ceiling - 1)
		last -= size;
	return first < last;
}

/**
 * free_left_tables - free the page tables at a place of a relocated VMA
 * @mm: its address space
 * @start: start of that place, old or new
 * @len: its length in bytes
 * @floor: end of what is mapped below
 * @ceiling: start of what is mapped above; 0 if there is nothing
 * @page_tables: there may be page tables, not only what is above them
 *
 * Context: mmap_lock held for write.
 */
void free_left_tables(struct mm_struct *mm, unsigned long start,
		      unsigned long len, unsigned long floor,
		      unsigned long ceiling, bool page_tables)
{
	struct mmu_gather tlb;

	if (!has_unused_table(start, start + len, floor, ceiling,
			      page_tables ? PMD_SIZE : PUD_SIZE))
		return;
	tlb_gather_mmu(&tlb, mm);
	free_pgd_range(&tlb, start, start + len, floor, ceiling);
	tlb_finish_mmu(&tlb);
}

/* What free_empty_tables() does, under one PUD entry and one round of the rmap locks. */
static void free_empty_tables_of(struct vm_area_struct *vma, pud_t *pud,
				 unsigned long addr, unsigned long end)
{
	pmd_t *pmd = pmd_offset(pud, addr);
	struct mmu_gather tlb;

	take_rmap_locks(vma);
	tlb_gather_mmu(&tlb, vma->vm_mm);
	for (; addr < end; addr += PMD_SIZE, pmd++) {
		if (is_empty_table(pmd))
			free_pgd_range(&tlb, addr, addr + PMD_SIZE, addr,
				       addr + PMD_SIZE);
	}
	tlb_finish_mmu(&tlb);
	drop_rmap_locks(vma);
}

/**
 * free_empty_tables - free what entries have left behind that moved within a VMA
 * @vma: the VMA
 * @start: start of the range where they have been
 * @end: end of that
 *
 * Only page tables that lie in the range and the VMA as a whole, so that nobody but
 * rmap walks of this VMA can be in one, and lockless readers.
 *
 * Context: mmap_lock held for write, the VMA write-locked. Takes i_mmap_rwsem and the
 *	    anon_vma lock by itself.
 */
void free_empty_tables(struct vm_area_struct *vma, unsigned long start,
		       unsigned long end)
{
	unsigned long addr = ALIGN(max(start, vma->vm_start), PMD_SIZE);
	unsigned long next, size;

	mmap_assert_write_locked(vma->vm_mm);
	end = ALIGN_DOWN(min(end, vma->vm_end), PMD_SIZE);
	for (; addr < end; addr = next) {
		pud_t *pud = find_used_pud(vma->vm_mm, addr);

		size = pud ? PUD_SIZE : get_hole_size(vma->vm_mm, addr);
		next = min(addr | (size - 1), end - 1) + 1;
		cond_resched();
		if (pud && !pud_none(pudp_get(pud)) && !pud_leaf(pudp_get(pud)))
			free_empty_tables_of(vma, pud, addr, next);
	}
}

/**
 * relocate_empty_vma - give a VMA that has no page table entries another address
 * @vma: the VMA
 * @addr: its new start
 *
 * Rmap walks get from the VMA at what address to look for a page. While there is none
 * at either, it does not matter which of the two they find, but it has to be one.
 *
 * Context: mmap_lock held for write, the VMA write-locked. Takes i_mmap_rwsem and the
 *	    anon_vma lock by itself.
 */
void relocate_empty_vma(struct vm_area_struct *vma, unsigned long addr)
{
	mmap_assert_write_locked(vma->vm_mm);
	take_rmap_locks(vma);
	vma_relocate(vma, addr, vma->vm_end - vma->vm_start);
	drop_rmap_locks(vma);
}

/**
 * move_stack_page_tables - move the stack's pages down within its VMA
 * @vma: temporary stack of an execve(), covers the old and the new range
 * @old_start: where the pages are
 * @new_start: where they go, below @old_start; the ranges may overlap
 * @len: length of both ranges in bytes
 *
 * Context: mmap_lock held for write on entry and exit.
 * Return: 0 or -ENOMEM; then some pages have moved, and the caller gives up
 *	   the whole address space.
 */
int move_stack_page_tables(struct vm_area_struct *vma, unsigned long old_start,
			   unsigned long new_start, unsigned long len)
{
	struct pagetable_move pm = {
		.src = vma,
		.dst = vma,
		.start = old_start,
		.end = old_start + len,
		.shift = new_start - old_start,
		.in_stack = true,
	};

	return move_page_tables(&pm);
}

#ifdef CONFIG_MREMAP_KUNIT_TEST
#include "tests/mremap_kunit.c"
#endif
