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

# What kernels are compiled with. In depend mode ccache does not see that piggy.S
# includes the compressed kernel: it would take an old one of the same length.
# shellcheck disable=SC2016,SC2034 # make expands it, in each recipe
kernel_gcc='$(if $(filter %/piggy.o,$@),,ccache )gcc'
