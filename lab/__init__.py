"""What stands behind the scripts: shared ground, training, sweeps, reports, benchmarks."""
