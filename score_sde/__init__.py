"""Score-based generative modelling through stochastic differential equations, in JAX.

    run = score_sde.load("runs/vp_digits")
    images = run.sample(jax.random.key(0), 64).images

The names below are resolved when first used, so that importing the package (as `main.py --help`
does) does not import JAX.
"""

import importlib

__version__ = "0.1.0"

# Each public name and the module that it comes from; a module's own name stands for the module.
_HOMES = {
    "AnnealedLangevin": "score_sde.samplers",
    "DDIM": "score_sde.samplers",
    "DEIS": "score_sde.samplers",
    "ExponentialMultistep": "score_sde.samplers",
    "Heun": "score_sde.samplers",
    "IPNDM": "score_sde.samplers",
    "PredictorCorrector": "score_sde.samplers",
    "ProbabilityFlow": "score_sde.samplers",
    "Run": "score_sde.run",
    "SDE": "score_sde.sde",
    "SubVPSDE": "score_sde.sde",
    "UserError": "score_sde.errors",
    "VESDE": "score_sde.sde",
    "VPSDE": "score_sde.sde",
    "load": "score_sde.run",
    "log_likelihood": "score_sde.likelihood",
    "oracle": "score_sde.oracle",
    "presets": "score_sde.presets",
    "samplers": "score_sde.samplers",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> object:
    """Import the home of a public name (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'score_sde' has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    value = home if home.__name__ == f"score_sde.{name}" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, resolved or not."""
    return __all__
