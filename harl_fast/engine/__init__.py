"""Runs of pretraining, fine-tuning and linear evaluation: loop, DeepSpeed, checkpoints, logs."""
