"""The names of what a run writes to TensorBoard, as far as more than one file uses them.

Those below charts/ are CleanRL's. The x axis of all is agent steps, of 4 emulator frames each.
"""

RETURN = "charts/episodic_return"  # raw score of a game, when it ends
LENGTH = "charts/episodic_length"  # of that game, in agent steps
MEAN_RETURN = "charts/mean_return_100"  # of the newest 100 games
SPS = "charts/SPS"  # agent steps per second
EPSILON = "charts/epsilon"
LEARNING_RATE = "charts/learning_rate"
LOSSES = "losses/"
REPRESENTATION = "representation/"
CHURN = "churn/"
CONTRIBUTIONS = ("q_contribution/", "value_contribution/")


def of_layer(measure: str, layer: str = "z") -> str:
    """Return the tag of a measure of a layer: of "z", or of a "branch_0" or "conv_1" below it."""
    return REPRESENTATION + (measure if layer == "z" else f"{layer}/{measure}")


def dead(layer: str = "z") -> str:
    """Return the tag of the share of dead neurons, by v1's test on kernel densities."""
    return of_layer("dead_kde", layer)


def rank(layer: str = "z") -> str:
    """Return the tag of the effective rank."""
    return of_layer("effective_rank", layer)


def saturated(layer: str = "z") -> str:
    """Return the tag of the share of neurons beyond 0.99 on 99 % of the samples."""
    return of_layer("saturated", layer)


def contribution(part: str, algorithm: str) -> str:
    """Return the tag of what a part of z ("dead_abs", "live", ...) adds to Q-values or value."""
    return f"{'value' if algorithm == 'ppo' else 'q'}_contribution/{part}"


def churn(part: str) -> str:
    """Return the tag of the greedy actions that an update changes: "total", "encoder" or "head"."""
    return CHURN + part
