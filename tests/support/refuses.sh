#!/bin/sh
# refuses.sh CODE SENTENCE COMMAND…: the command ends with this exit code, and what it says begins with this sentence.
code=$1 sentence=$2
shift 2
said=$("$@" 2>&1)
got=$?
printf '%s\n' "$said"
[ "$got" -eq "$code" ] || { echo "exit code $got, expected $code"; exit 1; }
case $said in
  "$sentence"*) ;;
  *) echo "expected: $sentence"; exit 1 ;;
esac
