"""Readers of model files: one module for each format, which returns a `PublishedModel`."""
