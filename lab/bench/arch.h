/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the benchmark has in assembly: the clock that counts instructions, a million
 * of them, a system call, and marks for lab/bench/profile.c.
 */
#ifndef ARCH_H
#define ARCH_H

#include <stdint.h>

#ifdef __x86_64__
#define CLOCK_STEP	1	/* ns between two readings that differ */

static inline uint64_t ticks(void)
{
	uint32_t low, high;

	asm volatile("rdtsc" : "=a" (low), "=d" (high) : : "memory");
	return (uint64_t)high << 32 | low;
}

static inline void spend_a_million(void)
{
	asm volatile("mov $500000, %%ecx\n1: dec %%ecx\n jnz 1b" : : : "ecx", "cc");
}

static inline void mark_begin(void)
{
	asm volatile("prefetchnta 0x4d42(%0)" : : "a" (0UL));
}

static inline void mark_end(void)
{
	asm volatile("prefetchnta 0x4d45(%0)" : : "a" (0UL));
}

static inline void relax(void)
{
	asm volatile("pause");
}

static inline long raw_call(long nr, long a, long b, long c, long d, long e)
{
	register long r10 asm("r10") = d;
	register long r8 asm("r8") = e;
	long ret;

	asm volatile("syscall" : "=a" (ret)
		     : "a" (nr), "D" (a), "S" (b), "d" (c), "r" (r10), "r" (r8)
		     : "rcx", "r11", "memory");
	return ret;
}
#elif defined(__aarch64__)
#define CLOCK_STEP	16	/* at least; QEMU's counter has 62.5 MHz, or more */

static inline uint64_t ticks(void)
{
	uint64_t count, frequency;

	asm volatile("mrs %0, cntfrq_el0" : "=r" (frequency));
	asm volatile("isb\n mrs %0, cntvct_el0" : "=r" (count) : : "memory");
	return count * (1000000000 / frequency);
}

static inline void spend_a_million(void)
{
	unsigned long left = 500000;

	asm volatile("1: subs %0, %0, #1\n b.ne 1b" : "+r" (left) : : "cc");
}

/* lab/bench/profile.c does not know how to read what this one executes. */
static inline void mark_begin(void)
{
}

static inline void mark_end(void)
{
}

static inline void relax(void)
{
	asm volatile("yield");
}

static inline long raw_call(long nr, long a, long b, long c, long d, long e)
{
	register long x8 asm("x8") = nr;
	register long x0 asm("x0") = a;
	register long x1 asm("x1") = b;
	register long x2 asm("x2") = c;
	register long x3 asm("x3") = d;
	register long x4 asm("x4") = e;

	asm volatile("svc #0" : "+r" (x0)
		     : "r" (x8), "r" (x1), "r" (x2), "r" (x3), "r" (x4) : "memory");
	return x0;
}
#endif

#endif
