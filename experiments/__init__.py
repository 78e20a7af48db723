"""Programs around the library; flags are read here and nowhere else."""
