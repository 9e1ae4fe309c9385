#!/usr/bin/env bash
# Take the cluster's pods away for the night and bring them back: park.sh park|unpark
# Parked, the RayService keeps its object and nothing else; Karpenter takes the GPU nodes back.
set -euo pipefail
case ${1:-} in
  park) suspend=true wanted=Suspended ;;
  unpark) suspend=false wanted=Ready ;;
  *) echo "usage: park.sh park|unpark" >&2; exit 2 ;;
esac
kubectl --namespace quantile patch rayservice quantile --type merge --patch "{\"spec\": {\"suspend\": $suspend}}"
kubectl --namespace quantile wait rayservice/quantile --for "condition=$wanted" --timeout 60m
