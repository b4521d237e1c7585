"""What the training scripts use: games, encoder, replay memory, checkpoints and logging."""
