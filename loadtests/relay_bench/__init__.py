"""What relaying a streamed token costs, against the alternatives, in one run.

`make bench-relay` or `python -m loadtests.relay_bench`. Figures and reading: DESIGN's decision
`serve_app/decisions/0002-relay.md`.
"""
