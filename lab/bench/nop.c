// SPDX-License-Identifier: GPL-2.0
/*
 * The smallest program to exec: no C library, it only exits.
 * built with: -nostdlib -fno-stack-protector
 */
#include <sys/syscall.h>

__attribute__((noreturn)) void _start(void)
{
	for (;;)
		asm volatile("syscall" : : "a" (SYS_exit), "D" (0) : "rcx", "r11", "memory");
}
