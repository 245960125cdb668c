"""Programs that turn images into containers, make masks and draw both, for `harl_fast`."""

import harl_fast.program  # noqa: F401  # with the first import an interrupt becomes one line
from harl_fast import pool

# ffcv brings torch, 3 s per process; Pillow imports its formats at the first picture.
pool.PRELOAD += ["preprocess.beton", "preprocess.demo.render", "PIL.JpegImagePlugin"]
