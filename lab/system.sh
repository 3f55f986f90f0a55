#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# An installed system of a Debian suite as the disk of a machine, build/trial/SUITE/disk.img:
# with the suite's own kernel, GRUB, and what lab/trial.py runs there. Nothing needs root.

# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

(($# == 1)) || die "usage: lab/system.sh SUITE
It is made once. Remove build/trial/SUITE/ to have it made anew, of newer packages."
suite=$1 out=build/trial
folder=$out/$suite key=$out/key
export new=$folder.new size=6144	# MB; what is not written takes no space

packages=(linux-image-cloud-amd64 initramfs-tools grub-pc openssh-server
	criu gcc libc6-dev make man-db manpages-dev)
# They would work beside what is tried.
timers=(apt-daily.timer apt-daily-upgrade.timer man-db.timer)

# What is ours in there: a few settings, and a key to log in with.
pack_settings() {
	[[ -e $key ]] || ssh-keygen -q -t ed25519 -N "" -C trial -f "$key"
	mkdir -p "$new/own/root/.ssh"
	cp "$key.pub" "$new/own/root/.ssh/authorized_keys"
	tar -cf "$new/own.tar" --owner=root:0 --group=root:0 --mode=u=rwX,go=rX \
		-C "$PWD/lab/trial/system" etc -C "$PWD/$new/own" root
}

# install_packages: the files of the system as an archive
install_packages() {
	mmdebstrap --variant=important --include="$(IFS=, && echo "${packages[*]}")" \
		--keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
		--customize-hook="tar-in '$PWD/$new/own.tar' /" \
		--customize-hook="chroot \"\$1\" systemctl enable systemd-networkd" \
		--customize-hook="chroot \"\$1\" systemctl mask ${timers[*]}" \
		"$suite" - "$mirror" 2> >(tee "$folder.log" | grep '^[EWI]: ' >&2)
}

# make_disk: fakeroot remembers whom the files belong to until mke2fs has them. GRUB, which
# gets the first MB, does not know all that mke2fs may make.
# shellcheck disable=SC2016 # the shell that fakeroot starts expands it
make_disk() {
	fakeroot -- bash -euc '
		mkdir "$new/root"
		tar --extract --directory="$new/root"
		cp "$new"/root/boot/vmlinuz-* "$new/vmlinuz"
		cp "$new"/root/boot/initrd.img-* "$new/initrd.img"
		truncate --size="${size}M" "$new/disk.img"
		mke2fs -q -t ext4 -L debian -O ^metadata_csum_seed,^orphan_file -E offset=1048576 \
			-d "$new/root" "$new/disk.img" "$((size - 1))M"
		rm -rf "$new/root"' &&
		echo "start=2048, type=83, bootable" | sfdisk --quiet "$new/disk.img"
}

lab/deps.sh trial
mkdir -p "$out"
take_lock "$folder.lock" "the system of $suite"
[[ ! -e $folder/disk.img || -n $(find lab/trial/system lab/system.sh -newer "$folder/disk.img") ]] ||
	exit 0
need_space 6000 "a system of $suite"
mirror=$(debian_mirror)
rm -rf "$folder" "$new"
mkdir "$new"
pack_settings
echo "making an installed system of $suite, see $folder.log" >&2
install_packages | make_disk || die "making a system of $suite failed, see $folder.log"
lab/trial.py --boot-loader "$new"
touch "$new/disk.img"
mv "$new" "$folder"
