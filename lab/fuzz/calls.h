/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the programs of the fuzzer consist of: a grammar of calls that make mappings
 * or change them, how arguments are chosen, and how a call is made.
 */
#ifndef CALLS_H
#define CALLS_H

#include <stdbool.h>
#include <stdint.h>

#define PAGE		4096UL
#define TABLE		512		/* pages that a page table maps */
#define GIGABYTE	(TABLE * TABLE)	/* in pages */
#define MOST_CALLS	16
#define MOST_ARGS	5

struct call {
	uint8_t kind;
	uint8_t fail;		/* the nth allocation fails; 0: none */
	uint8_t aside;		/* a thread makes it, while the next ones are made */
	uint32_t args[MOST_ARGS];
};

struct program {
	int length;
	struct call calls[MOST_CALLS];
};

/* Random numbers: the same ones from the same seed. */
uint32_t below(uint32_t bound);

static inline bool one_in(uint32_t n)
{
	return !below(n);
}

void random_program(struct program *program);
void mutate(struct program *program, const struct program *other);
void fail_in_turn(struct program *programs, int n);
int print_program(const struct program *program, char *text, int size);
bool parse_program(const char *text, struct program *program);

/* In a child of its own, which has a window of address space for it. */
void run_program(const struct program *program);
void prepare_calls(void);

#endif
