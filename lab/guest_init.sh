#!/guest/busybox sh
# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=dash source=/dev/null disable=SC2154  # the request sets variables
#
# PID 1 of the guest that lab/guest.py boots; busybox's shell runs it.
#
# guest.py puts /guest/request beside it, which sets root, cwd, tty, end_mark
# and PATH and makes the command the positional parameters. The command's output leaves
# through virtio port 1, followed by end_mark; its exit status through port 2;
# what this script itself has to say goes to the kernel's console. Any failure
# here ends PID 1, so the kernel panics and guest.py reports it.
set -eu

output_port=/dev/vport0p1
status_port=/dev/vport0p2
terminal=/dev/hvc0

mount_kernel_filesystems() {
	mount -t devtmpfs dev "$1/dev"
	mkdir -p "$1/dev/pts" "$1/dev/shm"
	mount -t sysfs sys "$1/sys"
	mount -t devpts -o mode=620,ptmxmode=666 devpts "$1/dev/pts"
	mount -t tmpfs -o mode=1777 shm "$1/dev/shm"
	mount -t tmpfs -o mode=755 run "$1/run"
	mount -t cgroup2 cgroup "$1/sys/fs/cgroup"
	# Not every kernel configuration has these.
	mount -t debugfs debug "$1/sys/kernel/debug" || true
	mount -t tracefs trace "$1/sys/kernel/tracing" || true
}

# The machine's own root, which nothing in the guest can change, below a tmpfs
# that takes the writes. The files are not going to change under the guest, so
# 9p may cache them without asking the host again.
enter_host_root() {
	mkdir /host /writes /merged
	mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose,access=any host /host
	mount -t tmpfs writes /writes
	mkdir /writes/upper /writes/work
	mount -t overlay -o lowerdir=/host,upperdir=/writes/upper,workdir=/writes/work root /merged
	mount -t proc proc /merged/proc
	mount_kernel_filesystems /merged
	cp -r /guest /init /merged/run
	exec switch_root /merged /run/guest/busybox sh /run/init entered
}

# Through a pipe, because a port can be opened only once and programs may want
# to open /dev/stdout again.
run_with_captured_output() {
	mkfifo /run/output
	cat /run/output >"$output_port" &
	exec 3>/run/output
	setsid "$@" </dev/null >&3 2>&3 3>&- 4>&- && status=0 || status=$?
	printf '\0%s' "$end_mark" >&3
}

run_on_terminal() {
	exec 3<>"$terminal" # its size is forgotten when nobody has it open
	# shellcheck disable=SC2086  # "rows R cols C" is several words
	stty $tty <&3
	setsid -c "$@" <&3 >&3 2>&3 3>&- 4>&- && status=0 || status=$?
}

if [ "${1-}" = entered ]; then
	. /run/guest/request
else
	# The shell finds its applets through /proc/self/exe.
	/guest/busybox mount -t proc proc /proc
	. /guest/request
	[ "$root" = initramfs ] || enter_host_root
	mount_kernel_filesystems ""
	busybox --install -s || true # an added file keeps its place
fi

export HOME=/root
ip link set lo up 2>/dev/null || true	# a lean kernel has no IP
hostname guest
tries=0
until [ -c "$status_port" ]; do
	sleep 0.1
	tries=$((tries + 1))
	[ "$tries" -lt 100 ] || { echo "no $status_port: is CONFIG_VIRTIO_CONSOLE built in?"; exit 1; }
done
exec 4<>"$status_port"
cd "$cwd"
if [ -n "$tty" ]; then
	run_on_terminal "$@"
else
	run_with_captured_output "$@"
fi
echo "$status" >&4
# guest.py answers when it has everything; going down earlier could lose output.
read -r _ <&4
reboot -f
