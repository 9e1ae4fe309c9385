"""Several Serve instances on one machine, each with HAProxy ports of its own."""


def beside(number: int) -> dict[str, str]:
    """The environment of one beside the first (1 to 9): else its HAProxy would find the other
    instances' replicas."""
    return {
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(9101 + 10 * number),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(8404 + 10 * number),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(8500 + 10 * number),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(31_000 + 200 * number),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(31_100 + 200 * number),
    }
