"""Energy-based models as first-class citizens of the JAX probabilistic-programming ecosystem.

The public names are listed in `__init__.pyi`; each is imported on first use, so that `import ebm_ppl` does not
pay for NumPyro or ArviZ.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
