"""The parts of regression_demo.py: the paper's claims about function fitting, and its theory."""
