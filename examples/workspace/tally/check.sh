#!/bin/sh
# The program as its users see it.
set -u
failures=0

expect() { # WHAT EXPECTED ACTUAL
  if [ "$2" = "$3" ]; then
    echo "ok - $1"
  else
    printf 'NOT OK - %s\n  expected: %s\n  got:      %s\n' "$1" "$2" "$3"
    failures=$((failures + 1))
  fi
}

tab=$(printf '\t')
expect "the most frequent word comes first" "3${tab}a" "$(echo 'a b A c a' | ./tally | head -n 1)"
expect "-n limits the lines" 2 "$(echo 'a b c d' | ./tally -n 2 | wc -l)"
expect "a file may be named" 1 "$(./tally Makefile | grep -c "${tab}ldflags$")"

./tally -n many </dev/null 2>/dev/null
expect "a wrong count is a usage error" 2 $?
./tally no-such-file 2>/dev/null
expect "a missing file is an error" 1 $?

exit "$((failures > 0))"
