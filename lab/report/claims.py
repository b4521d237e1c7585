"""The paper's claims about games: a table to read. What its tests do is in verdicts.py."""

# ruff: noqa: E501  (one claim a line)
import math
from typing import NamedTuple

from lab.common import tags
from lab.common.stats import BOOTSTRAP_SEEDS
from lab.report.measures import (
    BRANCHES_DEAD,
    DEAD,
    GRAD_DORMANT,
    LIVE_RANK,
    LIVE_RANK_SHARE,
    RANK,
)
from lab.report.runs import SCORE

MIN_SEEDS = 3
DEATHS = (DEAD, *BRANCHES_DEAD)
BIAS = (DEAD, *(tags.contribution(part, "dqn") for part in ("dead_abs", "live_abs")))


class Claim(NamedTuple):
    """What the paper says, where, and which test of which runs decides it."""

    text: str
    source: str  # version of the paper, and figure
    paper: str  # its number, if it gives one
    algorithm: str
    variants: tuple[str, ...]  # in the order in which the test takes them
    test: str  # one of verdicts.TESTS
    measures: tuple[str, ...] = (SCORE,)  # that the runs must have, in the order of the test
    between: tuple[float, float] = (-math.inf, math.inf)  # where it holds, if the test asks for it
    games: tuple[str, ...] = ()  # these alone, where the paper's line is of them
    human: bool = False  # only games with a human score
    seeds: int = MIN_SEEDS  # fewest in each game that decide


# fmt: off
CLAIMS = (
    # Scores.
    Claim("Tanh (HR) scores higher than ReLU", "v1 Fig. 5",           "", "dqn", ("tanh-hr", "relu"), "wins"),
    Claim("Tanh (HR) scores higher than Tanh", "v1 Fig. 5",           "", "dqn", ("tanh-hr", "tanh"), "wins"),
    Claim("Tanh (HR) scores higher than ReLU", "v1 Fig. 8",           "", "ppo", ("tanh-hr", "relu"), "wins"),
    Claim("Tanh (HR) scores higher than Tanh", "v1 Fig. 8",           "", "ppo", ("tanh-hr", "tanh"), "wins"),
    Claim("Tanh (HR) scores higher than ReLU", "v4 Fig. 1, inferred", "", "pqn", ("tanh-hr", "relu"), "wins"),
    Claim("Tanh (HR) scores higher than Tanh", "v4 Fig. 1",           "", "pqn", ("tanh-hr", "tanh"), "wins"),
    Claim("ReLU (HR) scores lower than ReLU",  "v1 Fig. 14",          "", "dqn", ("relu", "relu-hr"), "wins"),
    Claim("ReLU (HR) scores lower than ReLU",  "v4 Fig. 1",           "", "pqn", ("relu", "relu-hr"), "wins"),
    Claim("ReLU scores higher than Tanh",                                "v1 Fig. 5",          "", "dqn", ("relu", "tanh"),          "wins"),
    Claim("ReLU scores higher than Sigmoid",                             "v1 Fig. 5",          "", "dqn", ("relu", "sigmoid"),       "wins"),
    Claim("The sum of branches is worse than their product",             "v1 Fig. 7",          "", "dqn", ("tanh-hr", "tanh-sum"),   "wins"),
    Claim("SELU is worse than Tanh (HR)",                                "v1 Fig. 7",          "", "dqn", ("tanh-hr", "selu"),       "wins"),
    Claim("Tanh with z twice as wide is worse than Tanh (HR)",           "v1 Fig. 5, superseded by v5's parameter-matched control", "", "dqn", ("tanh-hr", "tanh-wide"), "wins"),
    Claim("Tanh (HR) more than doubles the median human-normalised score of Tanh",       "v4 Fig. 1", "> 2", "pqn", ("tanh-hr", "tanh"),     "doubles", human=True, seeds=BOOTSTRAP_SEEDS),
    Claim("The product of three scores like that of two (wins 35 to 65 % of the pairs)", "v1 Fig. 7", "",    "dqn", ("tanh-3hr", "tanh-hr"), "alike", between=(0.35, 0.65), seeds=BOOTSTRAP_SEEDS),
    # As many parameters.
    Claim("Tanh (HR) scores higher than Tanh of as many parameters", "v5 abstract, not in v4's", "", "dqn", ("tanh-hr", "tanh-match"), "wins"),
    Claim("Tanh (HR) scores higher than Tanh of as many parameters", "v5 abstract, not in v4's", "", "ppo", ("tanh-hr", "tanh-match"), "wins"),
    Claim("Tanh (HR) scores higher than Tanh of as many parameters", "v5 abstract, not in v4's", "", "pqn", ("tanh-hr", "tanh-match"), "wins"),
    # Is it LayerNorm alone? {LayerNorm, none} x {HR, none}. What an algorithm has by itself, none in
    # DQN and PPO and LayerNorm in PQN, is asked above: Tanh (HR) scores higher than Tanh.
    Claim("Tanh (HR) scores higher than Tanh where both have LayerNorm",        "asked by reviewers", "", "dqn", ("tanh-hr-ln", "tanh-ln"),     "wins"),
    Claim("Tanh (HR) scores higher than Tanh where both have LayerNorm",        "asked by reviewers", "", "ppo", ("tanh-hr-ln", "tanh-ln"),     "wins"),
    Claim("Tanh (HR) scores higher than Tanh where neither has LayerNorm",      "asked by reviewers", "", "pqn", ("tanh-hr-noln", "tanh-noln"), "wins"),
    Claim("Tanh (HR) without LayerNorm scores higher than Tanh with LayerNorm", "asked by reviewers", "", "dqn", ("tanh-hr", "tanh-ln"),        "wins"),
    Claim("Tanh (HR) without LayerNorm scores higher than Tanh with LayerNorm", "asked by reviewers", "", "ppo", ("tanh-hr", "tanh-ln"),        "wins"),
    Claim("Tanh (HR) without LayerNorm scores higher than Tanh with LayerNorm", "asked by reviewers", "", "pqn", ("tanh-hr-noln", "tanh"),      "wins"),
    # Representation, in DQN.
    Claim("Dead neurons in z of relu: within 10 points of the paper's share",    "v1 Fig. 6a", "about 60%", "dqn", ("relu",),    "share", (DEAD,), between=(0.5, 0.7)),
    Claim("Dead neurons in z of tanh: within 10 points of the paper's share",    "v1 Fig. 6a", "about 40%", "dqn", ("tanh",),    "share", (DEAD,), between=(0.3, 0.5)),
    Claim("Dead neurons in z of sigmoid: within 10 points of the paper's share", "v1 Fig. 6a", "about 40%", "dqn", ("sigmoid",), "share", (DEAD,), between=(0.3, 0.5)),
    Claim("Tanh (HR) has fewer dead neurons than tanh",    "v1 Fig. 6a", "", "dqn", ("tanh", "tanh-hr"),    "higher", (DEAD,)),
    Claim("Tanh (HR) has fewer dead neurons than relu",    "v1 Fig. 6a", "", "dqn", ("relu", "tanh-hr"),    "higher", (DEAD,)),
    Claim("Tanh (HR) has fewer dead neurons than sigmoid", "v1 Fig. 6a", "", "dqn", ("sigmoid", "tanh-hr"), "higher", (DEAD,)),
    Claim("The effective rank of tanh-hr is higher than that of tanh",    "v1 Fig. 6b", "", "dqn", ("tanh-hr", "tanh"),    "higher", (RANK,)),
    Claim("The effective rank of tanh is higher than that of relu",       "v1 Fig. 6b", "", "dqn", ("tanh", "relu"),       "higher", (RANK,)),
    Claim("The effective rank of sigmoid is higher than that of relu",    "v1 Fig. 6b", "", "dqn", ("sigmoid", "relu"),    "higher", (RANK,)),
    Claim("The effective rank of tanh-hr is higher than that of sigmoid", "v1 Fig. 6b", "", "dqn", ("tanh-hr", "sigmoid"), "higher", (RANK,)),
    # What the paper measured in DQN alone, asked of PQN, too.
    Claim("Dead neurons in z of relu: within 10 points of the paper's share",    "v1 Fig. 6a, of DQN", "about 60%", "pqn", ("relu",),    "share", (DEAD,), between=(0.5, 0.7)),
    Claim("Dead neurons in z of tanh: within 10 points of the paper's share",    "v1 Fig. 6a, of DQN", "about 40%", "pqn", ("tanh",),    "share", (DEAD,), between=(0.3, 0.5)),
    Claim("Dead neurons in z of sigmoid: within 10 points of the paper's share", "v1 Fig. 6a, of DQN", "about 40%", "pqn", ("sigmoid",), "share", (DEAD,), between=(0.3, 0.5)),
    Claim("Tanh (HR) has fewer dead neurons than tanh",    "v1 Fig. 6a, of DQN", "", "pqn", ("tanh", "tanh-hr"),    "higher", (DEAD,)),
    Claim("Tanh (HR) has fewer dead neurons than relu",    "v1 Fig. 6a, of DQN", "", "pqn", ("relu", "tanh-hr"),    "higher", (DEAD,)),
    Claim("Tanh (HR) has fewer dead neurons than sigmoid", "v1 Fig. 6a, of DQN", "", "pqn", ("sigmoid", "tanh-hr"), "higher", (DEAD,)),
    Claim("The effective rank of tanh-hr is higher than that of tanh",    "v1 Fig. 6b, of DQN", "", "pqn", ("tanh-hr", "tanh"),    "higher", (RANK,)),
    Claim("The effective rank of tanh is higher than that of relu",       "v1 Fig. 6b, of DQN", "", "pqn", ("tanh", "relu"),       "higher", (RANK,)),
    Claim("The effective rank of sigmoid is higher than that of relu",    "v1 Fig. 6b, of DQN", "", "pqn", ("sigmoid", "relu"),    "higher", (RANK,)),
    Claim("The effective rank of tanh-hr is higher than that of sigmoid", "v1 Fig. 6b, of DQN", "", "pqn", ("tanh-hr", "sigmoid"), "higher", (RANK,)),
    # Representation, in PPO, and of ReLU (HR).
    Claim("The effective rank of tanh-hr is higher than that of tanh", "v1 Fig. 8", "", "ppo", ("tanh-hr", "tanh"), "higher", (RANK,)),
    Claim("The effective rank of tanh-hr is higher than that of relu", "v1 Fig. 8", "", "ppo", ("tanh-hr", "relu"), "higher", (RANK,)),
    Claim("ReLU (HR) has a lower rank than ReLU",      "v1 Fig. 14",          "", "dqn", ("relu", "relu-hr"), "higher", (RANK,)),
    Claim("ReLU (HR) has more dead neurons than ReLU", "v1 Fig. 14",          "", "dqn", ("relu-hr", "relu"), "higher", (DEAD,)),
    Claim("ReLU (HR) has a lower rank than ReLU",      "v4 Fig. 1, inferred", "", "pqn", ("relu", "relu-hr"), "higher", (RANK,)),
    Claim("ReLU (HR) has more dead neurons than ReLU", "v4 Fig. 1, inferred", "", "pqn", ("relu-hr", "relu"), "higher", (DEAD,)),
    # A higher rank independently of dormancy: of the live neurons, and not as there are more of them.
    Claim("The srank (effective rank) of the live neurons of tanh-hr is higher than that of tanh", "v5 abstract, not in v4's", "", "dqn", ("tanh-hr", "tanh"), "live", (LIVE_RANK, DEAD)),
    Claim("The srank (effective rank) of the live neurons of tanh-hr is higher than that of tanh", "v5 abstract, not in v4's", "", "ppo", ("tanh-hr", "tanh"), "live", (LIVE_RANK, DEAD)),
    Claim("The srank (effective rank) of the live neurons of tanh-hr is higher than that of tanh", "v5 abstract, not in v4's", "", "pqn", ("tanh-hr", "tanh"), "live", (LIVE_RANK, DEAD)),
    Claim("The srank per live neuron of tanh-hr is higher than that of tanh",                      "v5 abstract, not in v4's", "", "dqn", ("tanh-hr", "tanh"), "live", (LIVE_RANK_SHARE, DEAD)),
    Claim("The srank per live neuron of tanh-hr is higher than that of tanh",                      "v5 abstract, not in v4's", "", "ppo", ("tanh-hr", "tanh"), "live", (LIVE_RANK_SHARE, DEAD)),
    Claim("The srank per live neuron of tanh-hr is higher than that of tanh",                      "v5 abstract, not in v4's", "", "pqn", ("tanh-hr", "tanh"), "live", (LIVE_RANK_SHARE, DEAD)),
    # Dormancy where v4 has dead neurons. How v5 measures it is not known; GraMa sees saturated tanh.
    Claim("Tanh (HR) has fewer neurons that are dormant by their gradient than tanh", "v5 abstract (dormant; v4: dead), by GraMa", "", "dqn", ("tanh", "tanh-hr"), "higher", (GRAD_DORMANT,)),
    Claim("Tanh (HR) has fewer neurons that are dormant by their gradient than tanh", "v5 abstract (dormant; v4: dead), by GraMa", "", "ppo", ("tanh", "tanh-hr"), "higher", (GRAD_DORMANT,)),
    Claim("Tanh (HR) has fewer neurons that are dormant by their gradient than tanh", "v5 abstract (dormant; v4: dead), by GraMa", "", "pqn", ("tanh", "tanh-hr"), "higher", (GRAD_DORMANT,)),
    # Theory: deaths of products.
    Claim("Products of tanh-hr die as independent branches would, within 5 points: p^2",      "v1 Table 1", "p^2",      "dqn", ("tanh-hr",),    "gap", DEATHS, between=(-0.05, 0.05)),
    Claim("Products of sigmoid-hr die as independent branches would, within 5 points: p",     "v1 Table 1", "p",        "dqn", ("sigmoid-hr",), "gap", DEATHS, between=(-0.05, 0.05)),
    Claim("Products of relu-hr die as independent branches would, within 5 points: 2p - p^2", "v1 Table 1", "2p - p^2", "dqn", ("relu-hr",),    "gap", DEATHS, between=(-0.05, 0.05)),
    Claim("Products of tanh-hr die as independent branches would, within 5 points: p^2",      "v1 Table 1", "p^2",      "ppo", ("tanh-hr",),    "gap", DEATHS, between=(-0.05, 0.05)),
    Claim("Products of sigmoid-hr die as independent branches would, within 5 points: p",     "v1 Table 1", "p",        "ppo", ("sigmoid-hr",), "gap", DEATHS, between=(-0.05, 0.05)),
    Claim("Products of relu-hr die as independent branches would, within 5 points: 2p - p^2", "v1 Table 1", "2p - p^2", "ppo", ("relu-hr",),    "gap", DEATHS, between=(-0.05, 0.05)),
    Claim("Products of tanh-hr die as independent branches would, within 5 points: p^2",      "v1 Table 1", "p^2",      "pqn", ("tanh-hr",),    "gap", DEATHS, between=(-0.05, 0.05)),
    Claim("Products of sigmoid-hr die as independent branches would, within 5 points: p",     "v1 Table 1", "p",        "pqn", ("sigmoid-hr",), "gap", DEATHS, between=(-0.05, 0.05)),
    Claim("Products of relu-hr die as independent branches would, within 5 points: 2p - p^2", "v1 Table 1", "2p - p^2", "pqn", ("relu-hr",),    "gap", DEATHS, between=(-0.05, 0.05)),
    # A hidden bias, and branches that make up for each other.
    Claim("Fewer products of Tanh (HR) are dead than of independent branches, as if one branch made up for the other",         "ours, after v1 Fig. 10",         "",            "dqn", ("tanh-hr",), "gap", DEATHS, between=(-math.inf, 0.0)),
    Claim("In Seaquest dead tanh neurons are a hidden bias: over a tenth (our bound) of the magnitude of the Q-values' parts", "v4 Fig. 4",                      "substantial", "dqn", ("tanh",),    "bias", BIAS, between=(0.1, math.inf), games=("Seaquest",)),
    Claim("Fewer products of Tanh (HR) are dead than of independent branches, as if one branch made up for the other",         "ours, after v1 Fig. 10, of DQN", "",            "pqn", ("tanh-hr",), "gap", DEATHS, between=(-math.inf, 0.0)),
    Claim("In Seaquest dead tanh neurons are a hidden bias: over a tenth (our bound) of the magnitude of the Q-values' parts", "v4 Fig. 4, of DQN",              "substantial", "pqn", ("tanh",),    "bias", BIAS, between=(0.1, math.inf), games=("Seaquest",)),
)
