"""Many runs in, one page out: `python -m lab.report runs`."""
