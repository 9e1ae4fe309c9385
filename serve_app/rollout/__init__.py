"""Shall the candidate take over? Evidence in, verdict out: anytime-valid tests. Pure."""
