from .config import RunConfig as RunConfig
from .config import ViewConfig as ViewConfig
from .config import load_config as load_config
from .data.loader import Batch as Batch
from .data.loader import BetonLoader as BetonLoader
from .data.loader import EvalLoader as EvalLoader
from .data.views.augment import AUGMENTATIONS as AUGMENTATIONS
from .data.views.augment import Augmentation as Augmentation
from .data.views.color_device import Colouring as Colouring
from .data.views.color_device import Photometric as Photometric
from .data.views.crop import ViewGeometry as ViewGeometry
from .engine.checkpoint.format import load_encoder as load_encoder
from .model.backbone import build_backbone as build_backbone
from .model.backbone import feature_size as feature_size
from .model.ema import ema_pairs as ema_pairs
from .model.ema import ema_update as ema_update
from .model.harl import HARL as HARL
from .optim.groups import param_groups as param_groups
from .optim.lars import LARS as LARS
from .optim.schedules import cosine_tau as cosine_tau
from .optim.schedules import scaled_lr as scaled_lr
from .optim.schedules import warmup_cosine as warmup_cosine

__version__: str
