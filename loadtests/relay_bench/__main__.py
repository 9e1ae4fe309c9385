"""`python -m loadtests.relay_bench`: `quantile bench overhead` without the rest of the command."""

import sys

import typer

from loadtests.relay_bench.overhead import overhead
from serve_app.domain.errors import QuantileError

if __name__ == "__main__":
    try:
        typer.run(overhead)
    except QuantileError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
