"""Checks of cluster/ that need no cluster: `python -m cluster.check`."""
