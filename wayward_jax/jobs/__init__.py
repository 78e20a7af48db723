"""Jobs: what a batch job reads, writes, shows, and survives."""
