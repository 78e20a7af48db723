"""File formats of published models."""
