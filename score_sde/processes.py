"""The processes by the names that configs give them.

A new process is a class in a file and a row here, with its import.
"""

from score_sde.discrete import DiscreteVPSDE
from score_sde.learned import LearnedVP
from score_sde.schedules import EDM, Cosine, Flow, Sigmoid
from score_sde.sde import SDE, VESDE, VPSDE, SubVPSDE

PROCESSES: dict[str, type[SDE]] = {
    "vp": VPSDE,
    "subvp": SubVPSDE,
    "ve": VESDE,
    "cosine": Cosine,
    "sigmoid": Sigmoid,
    "flow": Flow,
    "edm": EDM,
    "vp_discrete": DiscreteVPSDE,
    "vp_learned": LearnedVP,
}
