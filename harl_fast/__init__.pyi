from .config import LossConfig as LossConfig
from .config import ModelConfig as ModelConfig
from .config import RunConfig as RunConfig
from .config import ViewConfig as ViewConfig
from .config import load_config as load_config
from .data.loader import Batch as Batch
from .data.loader import BetonLoader as BetonLoader
from .data.loader import EvalLoader as EvalLoader
from .data.views.color_device import Colouring as Colouring
from .data.views.color_device import Photometric as Photometric
from .data.views.crop import ViewGeometry as ViewGeometry
from .engine.networks import export_encoder as export_encoder
from .engine.networks import load_encoder as load_encoder
from .model.backbone import Backbone as Backbone
from .model.backbones import BACKBONES as BACKBONES
from .model.backbones import build_backbone as build_backbone
from .model.ema import ema_pairs as ema_pairs
from .model.ema import ema_update as ema_update
from .model.harl import HARL as HARL
from .model.loss import LOSS_TERMS as LOSS_TERMS
from .model.loss import LossTerm as LossTerm
from .optim.groups import param_groups as param_groups
from .optim.lars import LARS as LARS
from .schedules import cosine_tau as cosine_tau
from .schedules import scaled_lr as scaled_lr
from .schedules import warmup_cosine as warmup_cosine

__version__: str
