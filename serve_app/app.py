"""What a Serve config file imports: `serve_app.app:router` and `serve_app.app:variant`.

Ray Serve calls these with the file's `args`. Type hints make Serve check the arguments before it
calls, so this module must not postpone the evaluation of annotations (a test sees to it).
"""

from ray import serve
from ray.serve import Application

from serve_app.config.schema import RouterArgs, VariantArgs
from serve_app.config.serve_file import STOP_S
from serve_app.serving.placement import actor_options
from serve_app.serving.start import require_planned_share
from serve_app.serving.variant_router import VariantRouter as _VariantRouter
from serve_app.serving.variant_server import VariantServer as _VariantServer
from serve_app.serving.variant_server import preflight_if_local

_OPTIONS = {
    "health_check_period_s": 2,
    "health_check_timeout_s": 10,
    "graceful_shutdown_timeout_s": STOP_S,
    "ray_actor_options": {"num_cpus": 0},
}
# Names of the deployments, as the file's `deployments` sections use them.
VariantRouter = serve.deployment(name="VariantRouter", max_ongoing_requests=1000, **_OPTIONS)(
    serve.ingress()(_VariantRouter)
)
VariantServer = serve.deployment(name="VariantServer", max_ongoing_requests=256, **_OPTIONS)(
    serve.ingress()(_VariantServer)
)


def router(args: RouterArgs) -> Application:
    """The public application: splits the traffic of one model over its variants."""
    return VariantRouter.bind(args)


def variant(args: VariantArgs) -> Application:
    """One quantization variant, with the share of a GPU that its arguments set aside.

    Raises CheckpointError or PlanError before any replica starts.
    """
    preflight_if_local(args)
    require_planned_share(args)
    return VariantServer.options(ray_actor_options=actor_options(args)).bind(args)
