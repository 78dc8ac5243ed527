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
    name: f"score_sde.{module}"
    for module, names in {
        "bounds": "likelihood_bound",
        "errors": "UserError",
        "guidance": "guidance",
        "inverse": "inverse",
        "learn": "train",
        "likelihood": "log_likelihood",
        "oracle": "oracle",
        "plots": "plots",
        "presets": "presets",
        "run": "Run load",
        "samplers": "AnnealedLangevin DDIM DEIS ExponentialMultistep Heun IPNDM PredictorCorrector "
        "ProbabilityFlow samplers",
        "schedules": "Cosine EDM Flow Shifted Sigmoid",
        "sde": "SDE SubVPSDE VESDE VPSDE",
    }.items()
    for name in names.split()
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
