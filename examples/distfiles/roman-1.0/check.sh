#!/bin/sh
# number=numeral pairs
set -u
failures=0
for pair in 1=I 4=IV 9=IX 14=XIV 40=XL 90=XC 400=CD 1994=MCMXCIV 2024=MMXXIV 3999=MMMCMXCIX; do
  number=${pair%%=*} expected=${pair#*=}
  actual=$(./roman "$number")
  if [ "$actual" = "$expected" ]; then
    echo "ok - $number is $expected"
  else
    echo "NOT OK - $number is $expected, got $actual"
    failures=$((failures + 1))
  fi
done
exit "$((failures > 0))"
