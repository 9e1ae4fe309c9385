"""What the load generator itself costs and can hold, against a mock engine of known times.

  python -m loadtests.bench sse                      CPU per streamed token, 50 and 150 streams
  python -m loadtests.bench sse --streams 200 --rounds 5
  python -m loadtests.bench pacer                    300 requests/s of 64 tokens on one core
  python -m loadtests.bench pacer --rate 500 --duration-s 60

Exit status: 0 the budget is kept, 1 it is not.
"""

import argparse
import sys

from loadtests.bench import pacer, sse


def main() -> int:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    each = commands.add_parser("sse", help="CPU of the SSE client per token")
    each.add_argument("--streams", type=int, nargs="+", default=[50, 150], help="at once")
    each.add_argument("--rounds", type=int, default=3)
    each.add_argument("--duration-s", type=float, default=5.0, help="of one round")
    each.add_argument("--tokens", type=int, default=64, help="per stream")
    pace = commands.add_parser("pacer", help="can one core send at this rate, on time?")
    pace.add_argument("--rate", type=float, default=300.0, help="requests/s")
    pace.add_argument("--tokens", type=int, default=64, help="per request")
    pace.add_argument("--duration-s", type=float, default=20.0)
    args = parser.parse_args()
    if args.command == "sse":
        return 0 if sse.bench(args.streams, args.rounds, args.duration_s, args.tokens) else 1
    return 0 if pacer.bench(args.rate, args.tokens, args.duration_s) else 1


if __name__ == "__main__":
    sys.exit(main())
