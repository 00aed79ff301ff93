"""In what order, and what is kept: pipeline, artifacts, promotion, model store, report, CLI."""
