"""The flags of the scripts as a user meets them: in the groups of --help, and as CleanRL's."""

import dataclasses

from lab.common.help import Groups

SHARED_GROUPS = {
    "run": ("env_id", "seed", "total_timesteps", "tag"),
    "hidden layers": (
        *("encoder", "activation", "branches", "combine", "latent_dim", "width", "layer_norm"),
        *("apply_to", "init"),
    ),
    "games": ("num_envs", "env_threads", "sticky_actions"),
    "measures": ("metrics_every", "metrics_samples"),
    "machine": ("device", "precision", "cuda_graphs"),
    "files": ("runs_dir", "track", "checkpoint_every", "resume"),
}
# Of CleanRL's scripts -> what does it here.
CLEANRL_FLAGS = {
    "--cuda": "here it is --device cuda, or auto for where there is one",
    "--no-cuda": "here it is --device cpu",
    "--exp-name": "here it is --tag",
    "--torch-deterministic": "on the CPU a run is always so: leave it out",
    "--capture-video": "a run that was trained is shown by: python -m lab.evaluate RUN --gif FILE",
    "--save-model": "a run always saves its network: leave it out",
    "--upload-model": "nothing is uploaded here: leave it out",
    "--hf-entity": "nothing is uploaded here: leave it out",
    "--wandb-project-name": "here it is the environment variable WANDB_PROJECT",
    "--wandb-entity": "here it is the environment variable WANDB_ENTITY",
}


def group_script_flags(args_class) -> Groups:
    """Return the groups of --help; what is of the algorithm alone is how it learns."""
    shared = {name for names in SHARED_GROUPS.values() for name in names}
    names = [field.name for field in dataclasses.fields(args_class)]
    learning = tuple(name for name in names if name not in shared)
    run, layers, games, *rest = SHARED_GROUPS.items()
    return dict([run, layers, games, ("learning", learning), *rest])


def translate_cleanrl(unknown: str) -> str:
    """Return what does here what this flag of CleanRL does, or nothing."""
    name = unknown.replace("_", "-")
    return CLEANRL_FLAGS.get(name) or CLEANRL_FLAGS.get(name.replace("--no-", "--"), "")
