"""Makes tables, figures and a page about finished jobs."""
