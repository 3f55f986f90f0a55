# SPDX-License-Identifier: GPL-2.0
# Append lines to a string, and then count them.
# It stops itself twice to be looked at: when it has grown, and when all was read.
use strict;
use warnings;

my $lines = 3_000_000;
my $string = "";
$string .= sprintf("line %07d of a text that a program puts together\n", $_) for 1 .. $lines;
kill STOP => $$;
my $right = $lines == ($string =~ tr/\n//);
kill STOP => $$;
die "wrong contents\n" unless $right;
