"""Locust's own web page for a run. It shows what Locust counts; the plan stays the plan's."""

import sys
from collections.abc import Callable

import gevent
from flask import Response, jsonify, request
from locust.env import Environment
from locust.stats import stats_history

from serve_app.domain.errors import ConfigError

HOST = "127.0.0.1"
LISTEN_S = 0.2


def show(environment: Environment, port: int, interrupt: Callable[[str], None]) -> None:
    """Serve the page on this machine's `port`. Raises ConfigError if the port is taken.

    Its stop button interrupts the run, and nothing else on it can change the load.
    """
    del sys.argv[1:]  # the page takes the command line for Locust's, and ends the process over ours
    page = environment.create_web_ui(host=HOST, port=port, delayed_start=True)

    def guard() -> Response | None:
        if request.method != "POST":
            return None
        if request.path == "/stop":
            interrupt("stopped on Locust's web page")
            return jsonify({"success": True, "message": "the run stops"})
        why = "a campaign follows its plan: start one with quantile loadtest"
        return jsonify({"success": False, "message": why})

    page.app.before_request(guard)
    page.start()
    gevent.spawn(stats_history, environment.runner)
    gevent.sleep(LISTEN_S)
    if page.greenlet.ready():
        raise ConfigError(f"--web-port {port}: cannot listen on {HOST}:{port}, name another port")
