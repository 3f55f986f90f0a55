#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Runs in the guest: gives it what the tests need, as far as its kernel has it,
# and runs one of them. usage: test_setup.sh PROGRAM [ARG...]
set -eu

set_if_there() {
	[ ! -e "$2" ] || echo "$1" >"$2"
}

thp=/sys/kernel/mm/transparent_hugepage

# Early, while memory is whole.
set_if_there 16 /proc/sys/vm/nr_hugepages
# So that tests get to the limit with few mappings.
set_if_there 200 /proc/sys/vm/max_map_count
set_if_there madvise $thp/enabled
set_if_there madvise $thp/defrag
# Nothing but a test's own calls may make its pages huge.
set_if_there 1000000 $thp/khugepaged/scan_sleep_millisecs

if [ -e /sys/block/zram0 ]; then
	echo 256M >/sys/block/zram0/disksize
	mkswap /dev/zram0 >/dev/null
	swapon /dev/zram0
fi

# Files that are no shared memory, as those of tmpfs would be.
mkdir -p /tmp
mount -t ramfs tmp /tmp
cd /tmp

# A file system that pages are written back to.
if grep -qw 'ext[24]' /proc/filesystems; then
	mkdir disk
	dd if=/dev/zero of=disk.image bs=1M count=16 2>/dev/null
	mke2fs -F disk.image >/dev/null
	losetup /dev/loop0 disk.image
	mount /dev/loop0 disk
	export MREMAP_DISK=/tmp/disk
fi
# Such kernels check all mappings of a process whenever one changes.
[ ! -e /proc/self/fail-nth ] || export MREMAP_SCALE="${MREMAP_SCALE-0.02}"
[ -e /sys/kernel/debug/kcsan ] || exec "$@"

# KCSAN is off until now: lab/config/kcsan.config. QEMU runs one processor after the other,
# for up to 100 ms. A watched access waits long enough that another one can come in between,
# so that fewer of them can be watched. lab/kcsan.py wants to know how many it were.
echo 5000 >/sys/module/kcsan/parameters/udelay_task
echo 40000 >/sys/module/kcsan/parameters/skip_watch
echo on >/sys/kernel/debug/kcsan
status=0
"$@" || status=$?
echo "kcsan: $(grep setup_watchpoints /sys/kernel/debug/kcsan)" >/dev/kmsg
exit $status
