"""The PrometheusRule made of observability/alerts.yaml: kustomize puts no file under `spec`."""

import yaml

from cluster.check.fault import ManifestError
from cluster.check.render import CLUSTER

ALERTS = CLUSTER / "observability" / "alerts.yaml"
MADE = CLUSTER / "monitoring" / "prometheusrule.yaml"
_HEAD = """\
# Made by `python -m cluster.check rules` of observability/alerts.yaml: change that, make this anew.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: quantile
  labels: {release: kube-prometheus-stack}
spec:
"""


def made() -> str:
    """The manifest: the groups as they are written, two spaces to the right."""
    lines = ALERTS.read_text("utf-8").splitlines()
    start = lines.index("groups:")
    return _HEAD + "".join(f"  {line}".rstrip() + "\n" for line in lines[start:])


def check_rules() -> str:
    """Raises ManifestError where the manifest has other groups than the rule file."""
    wanted = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    if not MADE.is_file() or yaml.safe_load(MADE.read_text("utf-8"))["spec"]["groups"] != wanted:
        raise ManifestError(f"{MADE} is not made of {ALERTS}: python -m cluster.check rules")
    return f"{sum(len(group['rules']) for group in wanted)} rules"
