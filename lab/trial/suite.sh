#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Runs a suite on an installed system, as lab/test.sh does in a guest. What
# lab/test_setup.sh sets up for it is put back. usage: suite.sh SUITE [ARG...]
set -eu

here=$(dirname "$(realpath "$0")")
suite=$here/suites/$1
shift
limit=$(cat /proc/sys/vm/max_map_count)
modprobe -a zram loop
status=0
unshare --mount sh "$here/test_setup.sh" env MREMAP_EXPECT=patched "$suite" "$@" || status=$?
echo "$limit" >/proc/sys/vm/max_map_count
# By its name: where the swap space is now, in a mount namespace that is gone, "-a" looks for
# it in vain. udev looks at the device once more.
swapoff /dev/zram0
udevadm settle
modprobe -r zram
losetup -D
exit "$status"
