"""A checkpoint's features judged on a folder of containers, from paths to result files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from harl_fast.data.container.manifest import containers_in
from harl_fast.engine.checkpoint.format import SUFFIX
from harl_fast.engine.networks import Pretrained, load_pretrained, random_like
from harl_fast.engine.provenance import code_version
from harl_fast.engine.runfolder import check_apart
from harl_fast.errors import ConfigError, one_line
from harl_fast.eval.cache import FeatureCache
from harl_fast.eval.knn import NEIGHBOURS, TEMPERATURE
from harl_fast.eval.metrics import scores
from harl_fast.eval.protocol import CROP, PROTOCOLS, Evaluation, Evaluator, table
from harl_fast.eval.results import Result, result_folder
from harl_fast.eval.results import write_result as write_folder
from harl_fast.eval.subsets import write_subset
from harl_fast.files import check_output
from harl_fast.lock import lock_beside, locked
from harl_fast.results import write_result
