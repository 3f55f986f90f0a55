// SPDX-License-Identifier: GPL-2.0
/*
 * The smallest program to exec: no C library, it only exits.
 * built with: -nostdlib -fno-stack-protector
 */
#include <sys/syscall.h>

#include "arch.h"

__attribute__((noreturn)) void _start(void)
{
	for (;;)
		raw_call(SYS_exit, 0, 0, 0, 0, 0);
}
