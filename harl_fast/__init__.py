"""Fast self-supervised pretraining on images with attention from masks (HARL)."""

__version__ = "0.1.0"
