#!/usr/bin/env bash
# Put your names into the files that hold ours: names.sh ACCOUNT HOST, such as names.sh 111122223333 llm.example.com
# The registry and the buckets (quantile-models-ACCOUNT, quantile-results-ACCOUNT) get the account's number, the Ingress the host. May be run again.
set -euo pipefail
if [[ $# -ne 2 || ! ${1:-} =~ ^[0-9]{12}$ || ! ${2:-} =~ ^[a-z0-9.-]+\.[a-z]+$ ]]; then
  echo "usage: names.sh ACCOUNT HOST: an account's 12 digits, and the name that clients will ask" >&2
  exit 2
fi
cd "$(dirname "$0")/../.."
find cluster configs -name '*.yaml' -o -name '*.json' -path 'configs/*' | xargs sed -i -E \
  -e "s/[0-9]{12}(\.dkr\.ecr\.)/$1\1/" \
  -e "s/\bquantile-(models|results)(-[0-9]{12})?(\/|\"|\}|\$)/quantile-\1-$1\3/g"
sed -i -E "s/(- host: )\S+/\1$2/" cluster/base/ingress.yaml
