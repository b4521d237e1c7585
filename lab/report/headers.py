"""What the measures of a run are called in a report."""

from lab.common import tags

HEADERS = {  # measure of a layer -> its column; what ends in % is a share
    "dead_kde": "dead, %",
    "dead_std": "dead when scaled, %",
    "dormant_0": "dormant (tau 0), %",
    "dormant_0.1": "dormant (tau 0.1), %",
    "grad_dormant_0.01": "dormant by gradient (tau 0.01), %",
    "grad_dormant_0.1": "dormant by gradient (tau 0.1), %",
    "saturated": "saturated, %",
    "effective_rank": "srank (effective rank)",  # the field's name, and the paper's
    "srank_live": "srank of live neurons",
    "srank_live_share": "srank per live neuron, %",
    "stable_rank": "stable rank",
    "pca_rank": "PCA rank",
    "entropy_rank": "entropy rank",
    "feature_norm": "feature norm",
    "weight_norm": "weight norm",
}
CHURN_HEADERS = {
    tags.churn("total"): "churn, %",
    tags.churn("encoder"): "churn by the encoder, %",
    tags.churn("head"): "churn by the head, %",
}


def is_share(tag: str) -> bool:
    """Return whether the measure of a tag is a share, which is told in percent."""
    header = CHURN_HEADERS.get(tag) or HEADERS.get(tag.rpartition("/")[2], "")
    return header.endswith("%")
