#!/usr/bin/env bash
# Install or upgrade the charts of helm/versions.yaml, at the versions pinned there.
set -euo pipefail
cd "$(dirname "$0")/../helm"
python3 -c 'import yaml' 2>/dev/null || { echo "install.sh: python3 has no PyYAML; put the project's first: PATH=\$PWD/.venv/bin:\$PATH" >&2; exit 2; }
# KubeRay's CRDs are too large for a client-side apply, and Helm never upgrades CRDs: put them first.
python3 - versions.yaml <<'END' | while IFS=$'\t' read -r name namespace repository version; do
import sys, yaml
for each in yaml.safe_load(open(sys.argv[1]))["charts"]:
    print(each["name"], each["namespace"], each["repository"], each["version"], sep="\t")
END
  if [ "$name" = kuberay-operator ]; then
    helm show crds "$name" --repo "$repository" --version "$version" | kubectl apply --server-side --force-conflicts -f -
  fi
  helm upgrade --install "$name" "$name" --repo "$repository" --version "$version" \
    --namespace "$namespace" --create-namespace --values "values/$name.yaml" --wait --timeout 10m
done
