"""Support code of the scripts: shared helpers, training, sweeps, reports, benchmarks."""
