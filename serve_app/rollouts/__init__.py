"""`quantile rollout`: carries out what `serve_app.rollout` decides."""
