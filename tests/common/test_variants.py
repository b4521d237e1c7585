"""The names of variants: from the flags of each script, and back."""

import itertools

import pytest
from algorithms import SCRIPTS, VARIANTS
from hypothesis import given
from hypothesis import strategies as st

import dqn_atari
import ppo_atari
import pqn_atari
from hadamard import ACTIVATIONS
from lab.common.cli import parse_flags
from lab.common.variants import NAMED_VARIANTS, variant_flags, variant_name


def test_names_of_the_settings_beyond():
    silu = dqn_atari.Args(activation="silu", branches=4, combine="sum")
    assert variant_name(silu) == "silu-4sum"
    assert variant_name(dqn_atari.Args(latent_dim=256)) == "tanh-hr-z256"
    assert variant_name(pqn_atari.Args(layer_norm=False)) == "tanh-hr-noln"
    assert variant_name(pqn_atari.Args(apply_to="last", branches=1)) == "tanh-last"
    assert variant_name(ppo_atari.Args(apply_to="all", layer_norm=True)) == "tanh-hr-ln-all"
    assert variant_name(pqn_atari.Args(width=1.5, branches=1)) == "tanh-w1.5"
    assert variant_name(dqn_atari.Args(width=2.0, latent_dim=1024)) == "tanh-hr-wide-w2"


@pytest.mark.parametrize(
    ("algorithm", "variant"),
    # PQN is layer-normalised: what others call tanh-ln is its tanh.
    sorted(set(itertools.product(SCRIPTS, VARIANTS)) - {("pqn", "tanh-ln")}),
)
def test_the_papers_variants_have_their_flags_by_name(variant, algorithm):
    """The same as the table of flags, which tests/algorithms.py has."""
    args_class = SCRIPTS[algorithm].Args
    assert set(VARIANTS) == set(NAMED_VARIANTS)
    args = parse_flags(args_class, argv=variant_flags(variant, ACTIVATIONS))
    assert args == args_class(**VARIANTS[variant])


@given(
    st.sampled_from(sorted(ACTIVATIONS)),
    st.integers(1, 5),
    st.sampled_from(["product", "sum"]),
    st.sampled_from([64, 512, 1024, 2000]),
    st.floats(1e-9, 1e17) | st.sampled_from([1.0, 2.0, "match"]),
    st.booleans(),
    st.sampled_from(["last", "all"]),
    st.sampled_from(sorted(SCRIPTS)),
)
def test_a_variants_name_gives_its_flags(
    activation, branches, combine, latent_dim, width, layer_norm, apply_to, algorithm
):
    combine = "product" if branches == 1 else combine  # of one branch there is nothing to name
    args_class = SCRIPTS[algorithm].Args
    named = {"activation": activation, "branches": branches, "combine": combine}
    named |= {"latent_dim": latent_dim, "width": width}
    args = args_class(**named, layer_norm=layer_norm, apply_to=apply_to)
    assert parse_flags(args_class, argv=variant_flags(variant_name(args), ACTIVATIONS)) == args
