"""Pretraining runs: the trainer, the DeepSpeed file, checkpoints, logs; joins all lower steps."""
