"""Whether a Serve config file's autoscaling does what it seems to: checked as a whole.

Serve takes any `policy_kwargs`, and learns of a wrong one in its controller, where nobody looks.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from serve_app.config.replicas import replica_bounds, variant_deployment
from serve_app.config.schema import VariantArgs
from serve_app.domain.errors import ConfigError
from serve_app.scaling.serve_policy import stake_of, targets_of

POLICY = "serve_app.scaling.serve_policy:VariantAutoscaler"
_DELAYS = ("upscale_delay_s", "downscale_delay_s")
_BESIDE = {
    "upscaling_factor": 1,
    "downscaling_factor": 1,
    "upscale_smoothing_factor": 1,
    "downscale_smoothing_factor": 1,
    "smoothing_factor": 1,
    "initial_replicas": None,
    "downscale_to_zero_delay_s": 0,
}
"""Settings of Serve that act beside the policy, and their neutral values."""
_STAKE = ("gpu", "budget", "tensor_parallel_size", "weight")


def check_scaling(
    applications: Sequence[dict[str, Any]],
    variants: Sequence[VariantArgs],
    sleepers: Collection[str],
    *,
    planned: bool = True,
) -> None:
    """Check the autoscaling of the variants' `applications` (in the order of `variants`).

    Raises ConfigError for arguments that the policy does not take, a share or budget that differs
    from what is planned or from another variant's, delays of Serve on top of the policy's, and
    `min_replicas: 0` of a variant that the router does not count among its `sleepers`. Shares and
    budgets of a file that is yet to be planned (`planned` False) are not looked at.
    """
    budgets: dict[str, Mapping[str, int]] = {}
    for application, args in zip(applications, variants, strict=True):
        may_sleep = replica_bounds(application).minimum == 0
        if may_sleep != (args.name in sleepers):
            raise ConfigError(
                f"variant {args.name} has min_replicas {0 if may_sleep else 'above 0'}, and the "
                f"router's user_config.sleepers {'lacks' if may_sleep else 'names'} it: "
                f"{'add it, or it would be down when it sleeps' if may_sleep else 'remove it'}"
            )
        if may_sleep and application.get("name") != args.name:
            raise ConfigError(
                f"variant {args.name} may sleep, so its application needs the same name (the "
                f"router looks it up in Serve's status), has {application.get('name')!r}"
            )
        scaling = variant_deployment(application).get("autoscaling_config") or {}
        if (scaling.get("policy") or {}).get("policy_function") == POLICY:
            budgets[args.name] = _check_policy(scaling, args, planned)
    distinct = {tuple(sorted(budget.items())) for budget in budgets.values()}
    if len(distinct) > 1:
        raise ConfigError(
            f"the variants share one GPU budget, have {budgets}: write it once and repeat it by a "
            "YAML alias"
        )


def _check_policy(scaling: dict[str, Any], args: VariantArgs, planned: bool) -> Mapping[str, int]:
    where = f"variant {args.name}: autoscaling_config"
    late = [name for name in _DELAYS if scaling.get(name) != 0]
    if late:
        raise ConfigError(
            f"{where} needs {' and '.join(f'{name}: 0' for name in late)}: Serve's delays would "
            "come on top of the policy's own (policy_kwargs), also where a replica must make room"
        )
    beside = [name for name, neutral in _BESIDE.items() if scaling.get(name) not in (None, neutral)]
    if beside:
        raise ConfigError(
            f"{where} sets {', '.join(beside)}: Serve would change what the policy decided for all "
            "variants together; leave it out"
        )
    kwargs = dict((scaling["policy"].get("policy_kwargs")) or {})
    stake = {name: kwargs.pop(name, None) for name in _STAKE}
    ranks = args.engine.tensor_parallel_size
    try:
        targets_of(1.0, kwargs)
        if not planned:
            return stake["budget"] or {}
        stake_of(stake["gpu"], stake["budget"], ranks, stake["weight"] or 1.0)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    asked = args.gpu and {"type": args.gpu.type, "fraction": args.gpu.fraction}
    stated = stake["gpu"] and {name: stake["gpu"].get(name) for name in ("type", "fraction")}
    if asked != stated or (stake["tensor_parallel_size"] or 1) != ranks:
        raise ConfigError(
            f"{where}: policy_kwargs say gpu {stated} on {stake['tensor_parallel_size'] or 1} "
            f"GPUs, args say {asked} on {ranks}: repeat args.gpu by a YAML alias, and "
            "engine.tensor_parallel_size"
        )
    return stake["budget"] or {}
