"""Fast self-supervised pretraining on images with attention from masks (HARL) over FFCV and DeepSpeed."""

__version__ = "0.1.0"
