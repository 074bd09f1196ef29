"""Search: many training runs as one program, over seeds and hyperparameters."""

from fnn.search.population import Population, evolve, perturb, population
from fnn.search.sweep import Sweep, sweep

__all__ = ["Population", "Sweep", "evolve", "perturb", "population", "sweep"]
