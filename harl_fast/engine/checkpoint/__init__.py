"""What a checkpoint holds, and how it is written beside the training."""
