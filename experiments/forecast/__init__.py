"""Forecasts of what a job would take on accelerators that are not there."""
