"""Many runs by name, on this machine or on Slurm: `python -m lab.sweep`."""
