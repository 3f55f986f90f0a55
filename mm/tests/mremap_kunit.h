/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the KUnit tests of mremap() have in common: mm/tests/mremap_kunit.c and
 * mm/tests/mremap_call_kunit.c.
 *
 * A test that needs an address space has one of its own: KUnit attaches it to
 * the thread that runs the test. A failed assertion ends that thread at once,
 * so none may be made under mmap_lock; there, and in what may be called there,
 * only expectations are used.
 */
#ifndef _MREMAP_KUNIT_H
#define _MREMAP_KUNIT_H

#include <kunit/test.h>
#include <linux/mman.h>
#include <linux/panic.h>
#include <linux/rmap.h>
#include <linux/uaccess.h>

#define PAGES(nr)	((nr) * PAGE_SIZE)

/* In the place of a test that cannot be compiled */
#define SKIPPED(name, why)		\
static void name(struct kunit *test)	\
{					\
	kunit_skip(test, why);		\
}

/* The address space of a test */

/* As far apart as the largest table is wide, if addresses suffice. */
#define ROOM	(IS_ENABLED(CONFIG_64BIT) ? PUD_SIZE : 32 * PMD_SIZE)
#define SRC_AT	ROOM
#define DST_AT	(4 * ROOM)

struct test_space {
	unsigned long table_bytes;	/* when nothing is mapped */
	unsigned long taint;
};

static inline int space_init(struct kunit *test)
{
	struct test_space *space;
	unsigned long addr;

	space = kunit_kzalloc(test, sizeof(*space), GFP_KERNEL);
	if (!space)
		return -ENOMEM;
	test->priv = space;
	space->taint = get_taint();

	addr = kunit_vm_mmap(test, NULL, 0, PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, 0);
	if (!addr || IS_ERR_VALUE(addr) || vm_munmap(addr, PAGE_SIZE))
		return -ENOMEM;
	space->table_bytes = mm_pgtables_bytes(current->mm);
	return 0;
}

/* A warning of the memory management is a failure, whoever else sees it. */
static inline void space_exit(struct kunit *test)
{
	const unsigned long bad = BIT(TAINT_WARN) | BIT(TAINT_BAD_PAGE);
	struct test_space *space = test->priv;

	if (space)
		KUNIT_EXPECT_EQ(test, get_taint() & bad, space->taint & bad);
}

/*
 * Last thing in a test: unmap all, see whether the books balance, and drop the
 * address space. KUnit would leave a reference to it behind, and the checks
 * that are made with the last one would not take place.
 */
static inline void close_space(struct kunit *test)
{
	struct test_space *space = test->priv;
	struct mm_struct *mm = current->mm;
	int i;

	KUNIT_EXPECT_EQ(test, vm_munmap(0, TASK_SIZE), 0);
	for (i = 0; i < NR_MM_COUNTERS; i++)
		KUNIT_EXPECT_EQ_MSG(test, percpu_counter_sum(&mm->rss_stat[i]),
				    0, "rss counter %d", i);
	KUNIT_EXPECT_EQ(test, mm->map_count, 0);
	KUNIT_EXPECT_EQ(test, mm->total_vm, 0);
	KUNIT_EXPECT_EQ(test, mm->data_vm, 0);
	KUNIT_EXPECT_EQ(test, mm->locked_vm, 0);
	KUNIT_EXPECT_EQ(test, mm_pgtables_bytes(mm), space->table_bytes);

	kthread_unuse_mm(mm);
	mmput(mm);
}

static inline void set_vma_flags(struct kunit *test, unsigned long addr,
				 vm_flags_t set, vm_flags_t clear)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;

	mmap_write_lock(mm);
	vma = vma_lookup(mm, addr);
	if (vma)
		vm_flags_mod(vma, set, clear);
	mmap_write_unlock(mm);
	KUNIT_ASSERT_NOT_NULL(test, vma);
}

static inline void map_file_at(struct kunit *test, struct file *file,
			       unsigned long addr, unsigned long len,
			       unsigned long prot, unsigned long flags)
{
	unsigned long at = kunit_vm_mmap(test, file, addr, len, prot, flags |
					 MAP_NORESERVE | MAP_FIXED_NOREPLACE, 0);

	KUNIT_ASSERT_EQ(test, at, addr);
	set_vma_flags(test, addr, VM_NOHUGEPAGE, 0);
}

/* Without huge pages, and not charged. */
static inline void map_at(struct kunit *test, unsigned long addr,
			  unsigned long len, unsigned long prot)
{
	map_file_at(test, NULL, addr, len, prot, MAP_PRIVATE | MAP_ANONYMOUS);
}

static inline unsigned long stamp_of(unsigned long addr)
{
	return ~addr;
}

static inline void stamp(struct kunit *test, unsigned long addr)
{
	KUNIT_ASSERT_EQ(test, 0, put_user(stamp_of(addr), (unsigned long __user *)addr));
}

static inline unsigned long peek(struct kunit *test, unsigned long addr)
{
	unsigned long value = 0;

	KUNIT_EXPECT_EQ(test, 0, get_user(value, (unsigned long __user *)addr));
	return value;
}

/* What was stamped at @from is at @addr now. */
static inline void expect_stamp_of(struct kunit *test, unsigned long addr, unsigned long from)
{
	KUNIT_EXPECT_EQ_MSG(test, peek(test, addr), stamp_of(from), "at %lx", addr);
}

static inline void expect_stamp(struct kunit *test, unsigned long addr)
{
	expect_stamp_of(test, addr, addr);
}

static inline struct vm_area_struct *vma_at(unsigned long addr)
{
	struct vm_area_struct *vma;

	mmap_read_lock(current->mm);
	vma = vma_lookup(current->mm, addr);
	mmap_read_unlock(current->mm);
	return vma;
}

static inline void expect_vma(struct kunit *test, unsigned long start, unsigned long end)
{
	struct vm_area_struct *vma = vma_at(start);

	KUNIT_EXPECT_NOT_NULL(test, vma);
	if (vma) {
		KUNIT_EXPECT_EQ(test, vma->vm_start, start);
		KUNIT_EXPECT_EQ(test, vma->vm_end, end);
	}
}

/* Is there an entry, and which? Huge pages have none on this level. */
static inline bool entry_at(unsigned long addr, pte_t *entry)
{
	struct mm_struct *mm = current->mm;
	pmd_t *pmd = mm_find_pmd(mm, addr);
	spinlock_t *ptl = NULL;
	pte_t *pte;

	pte = pmd ? pte_offset_map_lock(mm, pmd, addr, &ptl) : NULL;
	if (!pte)
		return false;
	*entry = ptep_get(pte);
	pte_unmap_unlock(pte, ptl);
	return !pte_none(*entry);
}

static inline struct page *page_at(unsigned long addr)
{
	pmd_t *pmd = mm_find_pmd(current->mm, addr);
	pte_t pte;

	if (pmd && pmd_present(*pmd) && pmd_leaf(*pmd))
		return pmd_page(*pmd) + ((addr & ~PMD_MASK) >> PAGE_SHIFT);
	if (!entry_at(addr, &pte) || !pte_present(pte))
		return NULL;
	return pte_page(pte);
}

struct rmap_places {
	unsigned int nr;
	unsigned long addr;
};

static inline bool note_place(struct folio *folio, struct vm_area_struct *vma,
			      unsigned long addr, void *arg)
{
	DEFINE_FOLIO_VMA_WALK(pvmw, folio, vma, addr, 0);
	struct rmap_places *places = arg;

	while (page_vma_mapped_walk(&pvmw)) {
		places->nr++;
		places->addr = pvmw.address;
	}
	return true;
}

/* Reverse mapping finds the small page at this address, and there alone. */
static inline void expect_rmap(struct kunit *test, struct page *page, unsigned long addr)
{
	struct rmap_places places = {};
	struct rmap_walk_control rwc = {
		.rmap_one = note_place,
		.arg = &places,
	};
	struct folio *folio;

	KUNIT_ASSERT_NOT_NULL(test, page);
	folio = page_folio(page);
	folio_get(folio);
	folio_lock(folio);
	rmap_walk(folio, &rwc);
	folio_unlock(folio);
	folio_put(folio);
	KUNIT_EXPECT_EQ(test, places.nr, 1);
	KUNIT_EXPECT_EQ(test, places.addr, addr);
}

#define RW	(PROT_READ | PROT_WRITE)
#define RWX	(RW | PROT_EXEC)

#endif /* _MREMAP_KUNIT_H */
