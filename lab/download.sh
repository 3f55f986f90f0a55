#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Downloads Debian packages from a suite that is not among the machine's own, which stay
# as they are: apt gets a state of its own.

. "$(dirname "$0")/common.sh"

(($# >= 3)) || die "usage: lab/download.sh SUITE FOLDER PACKAGE...
The packages are put to FOLDER, from the mirror of Debian that this machine has for its
own suites. What was there is removed."
suite=$1 folder=$2
shift 2

mirror=$(debian_mirror)
rm -rf "$folder"
mkdir -p "$folder"/apt/{lists,archives}/partial "$folder"/apt/none
cd "$folder"
cat >apt/suite.sources <<END
Types: deb
URIs: $mirror
Suites: $suite
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
cat >apt/conf <<END
Dir::State "$PWD/apt/";
Dir::State::status "/dev/null";
Dir::Cache "$PWD/apt/";
Dir::Etc::sourcelist "$PWD/apt/suite.sources";
Dir::Etc::sourceparts "$PWD/apt/none";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "$PWD/apt/none";
Acquire::Languages "none";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Acquire::http::Timeout "60";
Acquire::https::Timeout "60";
Acquire::Retries "2";
END
export APT_CONFIG=apt/conf
{ apt-get update && apt-get download "$@"; } >log 2>&1 ||
	die "$* cannot be had from $suite: $(grep -m1 '^E:' log || tail -n 1 log)"
rm -rf apt
