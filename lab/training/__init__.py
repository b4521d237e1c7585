"""What a training script stands on: games, encoder, memory, and the outside of a run."""
