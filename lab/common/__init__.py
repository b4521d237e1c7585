"""The ground that every other part of `lab` stands on; it imports nothing else of `lab`."""
