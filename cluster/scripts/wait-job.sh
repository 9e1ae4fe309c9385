#!/usr/bin/env bash
# Wait for a Job's end, good or bad (`kubectl wait` takes one of the two): wait-job.sh job/NAME
# Exit status: 0 complete, 1 failed, 2 not asked rightly. Every Job here has a deadline, so it does end.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: wait-job.sh job/NAME" >&2; exit 2; }
while true; do
  state="$(kubectl --namespace quantile get "$1" --output 'jsonpath={.status.conditions[?(@.status=="True")].type}')"
  case " $state " in
    *" Complete "*) echo "$1: complete"; exit 0 ;;
    *" Failed "*) echo "$1: failed; see kubectl --namespace quantile describe $1" >&2; exit 1 ;;
  esac
  sleep 10
done
