"""Where images come from: folders and torchvision's data sets, as one kind of list."""

from preprocess.sources.base import Rejected, Source, Split
from preprocess.sources.folders import folder_source
from preprocess.sources.torchvision import DATASETS, torchvision_source

__all__ = ["DATASETS", "Rejected", "Source", "Split", "folder_source", "torchvision_source"]
