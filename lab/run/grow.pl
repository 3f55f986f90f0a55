# SPDX-License-Identifier: GPL-2.0
# Grow a string and an array to tens of MB and check all of both.
use strict;
use warnings;

my ($parts, $items) = (96, 4_000_000);

# A quarter of a MB that names itself.
sub part { return pack("N", $_[0] * 2654435761 % 4294967296) x 65536 }

my $string = "";
$string .= part($_) for 1 .. $parts;
for (1 .. $parts) {
	die "part $_ of the string is wrong\n"
		if substr($string, ($_ - 1) * 262144, 262144) ne part($_);
}

my @array;
push @array, ($_) x 1000 for 1 .. $items / 1000;
for (0 .. $#array) {
	die "item $_ is wrong\n" if $array[$_] != int($_ / 1000) + 1;
}
printf "a string of %d bytes, an array of %d items\n", length($string), scalar @array;
