"""`quantile recommend`: gathers the evidence for `serve_app.advise`, and shows what comes of it."""
