"""Speed against this machine's own limit: `python -m lab.bench`."""
