"""What relaying a streamed token costs, against the alternatives, in one run.

`quantile bench overhead`, or `make bench-relay`. Figures and reading: the decisions
`serve_app/decisions/0002-relay.md` and `0023-overhead.md`.
"""
