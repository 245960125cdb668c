"""Fast self-supervised pretraining on images with attention from masks (HARL).

The names that `__init__.pyi` lists are the library's public interface; each is imported when it is
first used, since torch and FFCV take seconds. `examples/minimal.py` puts them together.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
