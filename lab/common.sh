# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What every shell script of the lab starts with: source it first.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() {
	echo "${0##*/}: $*" >&2
	exit 1
}

# The unpatched kernel that is worked with, one of bases/. The port is to the default
# one, whose source is build/base/; all that is made of another is in build/BASE/.
default_base=6.12
BASE=${BASE:-$default_base}
[[ $BASE == */* || ! -f bases/$BASE ]] && die "bases/ has no '$BASE'; there are $(cd bases && echo *)"
work=build
[[ $BASE == "$default_base" ]] || work=build/$BASE
export BASE
# shellcheck disable=SC2034 # base.sh, image.sh and others
base=$work/base sums=bases/$BASE

# of_base KEY: what the head of its file in bases/ says.
of_base() {
	sed -n "s/^# $1 //p" "$sums"
}

needs_port() {
	[[ $BASE == "$default_base" ]] || die "$1 needs the port to $BASE, which is not there yet"
}

# need_space MB WHAT: a build that runs out of disk halfway wastes the wait.
need_space() {
	local free
	mkdir -p build
	free=$(df --output=avail -BM build | tr -dc 0-9)
	((free >= $1)) || die "$2 needs $1 MB of disk in build/, $free MB are free"
}

# take_lock FILE WHAT: held until this script and what it started have ended.
take_lock() {
	mkdir -p "$(dirname "$1")"
	exec 9>"$1"
	flock -n 9 && return
	echo "waiting for another run that makes $2" >&2
	flock 9
}

# The mirror of Debian that this machine has for its own suites.
debian_mirror() {
	local mirrors
	# shellcheck disable=SC2016 # apt expands it
	mirrors=$(apt-get indextargets --format '$(SITE)' 'Origin: Debian' 'Label: Debian')
	[[ $mirrors ]] || die "apt knows no mirror of Debian, see apt-get update"
	head -n 1 <<<"$mirrors"
}

# What kernels are compiled with. In depend mode ccache does not see that piggy.S
# includes the compressed kernel: it would take an old one of the same length.
# shellcheck disable=SC2016,SC2034 # make expands it, in each recipe
kernel_gcc='$(if $(filter %/piggy.o,$@),,ccache )gcc'

# kbuild_environment HOST: what would otherwise make two builds of one source differ,
# and ccache useless. "make image TREE=..." would hand its variables on to Kbuild.
# Depend mode spares a run of the preprocessor per object, a fifth of the time.
kbuild_environment() {
	export KBUILD_BUILD_TIMESTAMP="Thu Jan  1 00:00:00 UTC 2026"
	export KBUILD_BUILD_USER=lab KBUILD_BUILD_HOST=$1 LOCALVERSION="" LC_ALL=C
	export CCACHE_NOHASHDIR=1 CCACHE_DEPEND=1
	unset MAKEFLAGS MFLAGS MAKELEVEL
}

# lost_options CONFIG: those of the standard input that Kconfig did not keep in that file.
# They would be missed only when a test needs them.
lost_options() {
	awk '
		FNR == 1 { file++ }
		!/^CONFIG_/ { next }
		{ at = index($0, "="); name = substr($0, 1, at - 1); value = substr($0, at + 1) }
		file == 1 { has[name] = value; next }
		(name in has ? has[name] : "n") != value { print $0 }
	' "$1" - | paste -sd " "
}

# start_job COMMAND...: in the background, as many at a time as there are processors.
jobs_running=0 jobs_failed=0
start_job() {
	((jobs_running < $(nproc))) || end_job
	"$@" &
	((++jobs_running))
}

end_job() {
	wait -n || jobs_failed=1
	((jobs_running--)) || true
}

# Fails if one of them did.
wait_for_jobs() {
	while ((jobs_running)); do
		end_job
	done
	((!jobs_failed))
}

# sum_up FILE...: adds up the lines "N passed, N failed, N skipped".
sum_up() {
	cat "$@" | sed 's/[^0-9 ]//g' | awk '
		{ for (i = 1; i <= 3; i++) sum[i] += $i }
		END { printf "%d passed, %d failed, %d skipped\n", sum[1], sum[2], sum[3] }'
}

# What a kernel says only if something is wrong, where lab/guest.py does not look.
# shellcheck disable=SC2034
splat='BUG: |WARNING: |kernel BUG at|Oops|Kernel panic|general protection|Unable to handle|UBSAN: |bad p[gmu4]d |Bad swap|DEBUG_LOCKS_WARN_ON|corruption'
