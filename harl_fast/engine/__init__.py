"""Pretraining runs: the DeepSpeed file, the step, checkpoints, logs; joins all lower steps."""
