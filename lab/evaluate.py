"""How well a checkpoint plays: many games at once, each from its own seed, and the best one seen.

Of a finished run `config.json` and `model.pt` are enough.

    python -m lab.evaluate runs/NAME                          30 greedy games
    python -m lab.evaluate runs/NAME --epsilon 0.05 --gif best.gif

PPO plays its most likely action, or with --sample draws from its policy as in training. Games are
those of training: no-ops at the start, FIRE after a life lost, all lives, raw scores.
"""

import dataclasses
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import tyro
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from lab.common.cli import UsageError, between, describe_os, launch, named_path, plural, say
from lab.common.device import check_device, pick_device
from lab.common.files import atomic_write, check_targets, write_json
from lab.common.provenance import record_provenance
from lab.common.stats import mean_over_games, normalise, reference_scores
from lab.common.variants import variant_name
from lab.training.algorithms import ALGORITHMS, load_script, make_network, score_actions
from lab.training.atari import AtariEnvs, game_title, make_screen, resolve_game
from lab.training.checkpoint import (
    FORMAT,
    describe_version,
    find_newest_whole,
    has_checkpoint,
    read_newest_footer,
    read_weights,
)
from lab.training.checks import check_memory
from lab.training.form import check_part
from lab.training.measure import hidden_layers
from lab.training.resume import load_flags
from lab.training.runfolder import read_config, select_checkpoint_flags
from metrics import dead_neurons

SCALE = 2  # pixels of the picture per pixel of the game
CELL = 8  # pixels of a unit
MOST_FRAMES = 1_000  # of a GIF; of a longer game every second, third, ... step is shown
MS_PER_STEP = 67  # 4 emulator frames at 60 a second


@dataclass
class Args:
    """Play the newest checkpoint of a run, without learning. A step is 4 emulator frames."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = ""
    """folder of a run"""
    games: int = 30
    """games to play, all at once, each to its end"""
    epsilon: float = 0.0
    """chance of a random action"""
    sample: bool = False
    """PPO: draw actions from the policy, instead of the most likely one"""
    seed: int = 100_000
    """of the first game and of the actions; far from the seeds of training"""
    gif: str = ""
    """file for a GIF of the best game, with the units of z and the value beside it"""
    device: str = "auto"
    """auto, cpu or cuda"""


def check(args: Args):
    """Raise UsageError for a flag that cannot work, before anything is made."""
    if not args.run:
        raise UsageError("no run: name its folder, such as runs/NAME")
    between(args, 1, 1024, "games")
    between(args, 0, 1, "epsilon")
    between(args, 0, 2**31 - 1 - args.games, "seed")
    check_device(args)
    if args.gif:
        target = Path(args.gif)
        if target.suffix.lower() != ".gif":
            raise UsageError(f"--gif {args.gif} must end in .gif, such as best.gif")
        if not target.parent.is_dir():
            raise UsageError(f"--gif {args.gif}: there is no folder {target.parent}")
        check_targets(target.parent, (target.name,), "--gif")


class Player(NamedTuple):
    """A network that plays: its run's flags, algorithm and agent steps of learning."""

    network: torch.nn.Module
    algorithm: str
    flags: object  # Args of the script
    step: int


def load(folder: Path, device: torch.device) -> Player:
    """Load the newest checkpoint of a run, or the model.pt of a finished one that has none left.

    Raise UsageError if there is none that can be used.
    """
    config = read_config(folder, "")
    algorithm = config["algorithm"]
    if algorithm not in ALGORITHMS:
        raise UsageError(f"{folder}: its algorithm is {algorithm!r}, not one of {ALGORITHMS}")
    script = load_script(algorithm)
    flags = load_flags(script.Args, folder, config, {}, "")
    try:
        # As on the machine of the run, which may have been another one.
        script.check(here := dataclasses.replace(flags, device="cpu", precision="fp32"))
        check_memory(here)
    except UsageError as error:
        raise UsageError(f"{folder}/config.json: {error}") from None
    state = _read_newest(folder, config)
    envs = AtariEnvs(flags.env_id, 1, 0)
    num_actions = int(envs.single_action_space.n)
    envs.close()
    network = make_network(algorithm, num_actions, flags)
    try:
        step = int(state["step"])
        check_part("network", network, state["network"])
        network.load_state_dict(state["network"])
    except (KeyError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        said = " ".join(str(error).split())[:300]
        raise UsageError(f"{folder}: its checkpoint does not fit: {said}") from None
    network = network.to(device, memory_format=torch.channels_last)
    return Player(network, algorithm, flags, step)


def _read_newest(folder: Path, config: dict) -> dict:
    """Read a run's "network", weights by name, and its "step"."""
    model = folder / "model.pt"
    if config.get("finished") and not has_checkpoint(folder) and os.path.lexists(model):
        return {"network": read_weights(model), "step": config["finished"]}
    footer = read_newest_footer(folder)
    if footer is not None and footer.format != FORMAT:
        raise UsageError(
            f"{folder}: its checkpoint was {describe_version(footer)}; play it with that one, "
            f"commit {config.get('git_commit') or 'unknown'}"
        )
    _, content, problems = find_newest_whole(folder, select_checkpoint_flags(config["flags"]))
    for problem in problems:
        say(f"{problem}: playing the checkpoint before it")
    return content["state"]


class Chooser:
    """Choose the actions of a player; random choices come from a generator of its own."""

    def __init__(self, player: Player, args: Args, device: torch.device):
        self.player, self.args, self.device = player, args, device
        self.rng = np.random.default_rng(args.seed)

    @torch.no_grad()
    def __call__(self, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return actions (games,) and values (games,), max Q or PPO's V, for obs uint8."""
        obs = torch.from_numpy(obs).to(self.device)
        scores, values = score_actions(self.player.network, obs)
        scores = scores.double().cpu().numpy()
        if self.args.sample:  # Gumbel's way to draw from a categorical distribution
            scores = scores + self.rng.gumbel(size=scores.shape)
        actions = scores.argmax(axis=1)
        explore = self.rng.random(len(obs)) < self.args.epsilon
        random = self.rng.integers(scores.shape[1], size=len(obs))
        return np.where(explore, random, actions), values.float().cpu().numpy()


class PlayedGames(NamedTuple):
    """The games that were played: raw scores, lengths in agent steps, all actions of each."""

    scores: np.ndarray  # (games,)
    lengths: np.ndarray  # (games,)
    actions: list[np.ndarray]  # (games,) arrays (steps,)


def play(player: Player, choose: Chooser, args: Args) -> PlayedGames:
    """Play every game once, to its end: no short one counts twice, and none is cut off."""
    sticky = player.flags.sticky_actions
    envs = AtariEnvs(player.flags.env_id, args.games, args.seed, sticky_actions=sticky)
    obs, _ = envs.reset()
    scores, lengths = np.zeros(args.games), np.zeros(args.games, int)
    going, history = np.ones(args.games, bool), []
    bar = tqdm(total=args.games, unit="game", disable=not sys.stderr.isatty())
    while going.any():
        actions, _ = choose(obs)
        obs, _, _, _, infos = envs.step(actions)
        history.append(actions)
        if "episode" in infos:
            ended = infos["episode"]["_r"] & going
            scores[ended] = infos["episode"]["r"][ended]
            lengths[ended] = infos["episode"]["l"][ended]
            going &= ~ended
            bar.update(int(ended.sum()))
        bar.set_postfix_str(f"{len(history):,} steps", refresh=False)
    bar.close()
    envs.close()
    every = np.stack(history)
    return PlayedGames(scores, lengths, [every[: lengths[i], i] for i in range(args.games)])


def summarise(played: PlayedGames, game: str) -> dict:
    """Return the mean score with its 95 % interval (Student's t over games), and more."""
    scores = played.scores
    mean, low, high = mean_over_games([scores])
    summary = {
        "games": len(scores),
        "mean": mean,
        "interval": None if math.isnan(low) else [low, high],
        "median": float(np.median(scores)),
        "lowest": float(scores.min()),
        "highest": float(scores.max()),
        "mean_length_agent_steps": float(played.lengths.mean()),
    }
    if game in reference_scores():
        summary["human_normalised"] = float(normalise(mean, *reference_scores()[game]))
    return summary


class Moment(NamedTuple):
    """What the picture of an agent step shows."""

    screen: np.ndarray  # uint8 (height, width, 3), in the game's own colours and size
    z: Tensor  # (units,)
    value: float
    score: float  # raw, before the step
    step: int
    action: str


@torch.no_grad()
def draw_game(player: Player, actions: np.ndarray, seed: int, device) -> Iterator[Image.Image]:
    """Play the game of these actions again; yield a picture per step: screen, units, value.

    A unit is blue (negative) or red (positive), the stronger the larger; one that is dead over this
    game, by the paper's test, is crossed out.
    """
    game, sticky = player.flags.env_id, player.flags.sticky_actions
    envs = AtariEnvs(game, 1, seed, sticky_actions=sticky)
    screen, shown = make_screen(envs.game, seed, sticky)
    obs, _ = envs.reset()
    moments, score, names = [], 0.0, envs.action_names
    stride = math.ceil(len(actions) / MOST_FRAMES)
    for t, action in enumerate(actions):
        frames, before = torch.from_numpy(obs).to(device), shown[0, -1]
        obs, *_, infos = envs.step(np.array([action]))
        executed = infos["executed_actions"]
        if t % stride == 0:
            z = hidden_layers(player.network, frames)["z"][0].float().cpu()
            value = float(score_actions(player.network, frames)[1])
            moments.append(Moment(before.copy(), z, value, score, t, names[executed[0]]))
        shown, rewards, *_ = screen.step(executed)
        score += rewards[0]
    envs.close()
    screen.close()
    z = torch.stack([moment.z for moment in moments])
    dead = dead_neurons(z).numpy() if len(z) > 1 else np.zeros(z.shape[1], bool)
    panel = draw_units(z.numpy(), dead)
    # One at a time: a thousand of them take half a gigabyte.
    return (compose(moments, panel[t], t, dead) for t in range(len(moments)))


def draw_units(z: np.ndarray, dead: np.ndarray) -> np.ndarray:
    """Draw z (steps, units) as panels, uint8 (steps, h, w, 3), 32 units a row."""
    strength = np.clip(np.abs(z) / max(np.abs(z).max(), 1e-9), 0, 1)[..., None]
    tint = np.where(z[..., None] > 0, [200, 40, 30], [30, 70, 200])
    colors = (255 - strength * (255 - tint)).astype(np.uint8)
    rows = -(-z.shape[1] // 32)
    cells = np.full((len(z), rows * 32, 3), 255, np.uint8)
    cells[:, : z.shape[1]] = colors
    grid = cells.reshape(len(z), rows, 32, 3).repeat(CELL, axis=1).repeat(CELL, axis=2)
    diagonal = np.arange(1, CELL - 1)
    for unit in np.flatnonzero(dead):
        y, x = divmod(unit, 32)
        grid[:, y * CELL + diagonal, x * CELL + diagonal] = 90
    return grid


def compose(moments: list[Moment], panel: np.ndarray, t: int, dead: np.ndarray) -> Image.Image:
    """Compose picture t: screen at the left, units at the right, the value so far below."""
    now, values = moments[t], [moment.value for moment in moments]
    height, width = (SCALE * side for side in now.screen.shape[:2])
    picture = Image.new(
        "RGB",
        (width + panel.shape[1] + 24, max(height + 24, panel.shape[0] + 40) + 76),
        "white",
    )
    screen = Image.fromarray(now.screen).resize((width, height), Image.Resampling.NEAREST)
    picture.paste(screen, (8, 24))
    picture.paste(Image.fromarray(panel), (width + 16, 40))
    draw = ImageDraw.Draw(picture)
    draw.text((8, 8), f"step {now.step}  score {now.score:g}  {now.action}", fill="black")
    draw.text(
        (width + 16, 8),
        f"z, {len(now.z)} units: red positive, blue negative, pale near 0;",
        fill="black",
    )
    draw.text(
        (width + 16, 22),
        f"crossed: {dead.mean():.0%}, dead in these {len(values)} steps",
        fill="black",
    )
    top, bottom = picture.height - 52, picture.height - 8
    draw.text((8, top - 14), f"value {now.value:.2f}", fill="black")
    low, span = min(values), max(max(values) - min(values), 1e-9)
    ends = picture.width - 8
    points = [
        (8 + (ends - 8) * i / len(values), bottom - (bottom - top) * (value - low) / span)
        for i, value in enumerate(values[: t + 1])
    ]
    if len(points) > 1:
        draw.line(points, fill=(30, 70, 200), width=2)
    return picture


def write_gif(path: Path, pictures: Iterator[Image.Image]):
    """Write the GIF whole, or not at all. Raise UsageError if it cannot be written."""
    reduced = (picture.quantize(64) for picture in pictures)
    first = next(reduced)
    try:
        with atomic_write(path) as file:
            more = {"append_images": reduced, "duration": MS_PER_STEP, "loop": 0}
            first.save(file, format="GIF", save_all=True, **more)
    except OSError as error:
        raise UsageError(f"--gif {path}: {describe_os(error)}") from None


def main(args: Args) -> int:
    """Play the games, print the scores and keep them; return the exit status."""
    check(args)
    folder = named_path(args.run)
    device = pick_device(args.device)
    player = load(folder, device)
    if args.sample and player.algorithm != "ppo":
        raise UsageError(f"--sample is for PPO; this is a run of {player.algorithm}: use --epsilon")
    game = game_title(resolve_game(player.flags.env_id))
    total = player.flags.total_timesteps
    unfinished = "" if player.step >= total else f" of {total:,}, an unfinished run"
    how = "actions drawn from the policy" if args.sample else "greedy"
    if args.epsilon > 0:
        how += f", epsilon {args.epsilon:g}"
    say(
        f"{game}, {player.algorithm}, {variant_name(player.flags)}, seed {player.flags.seed}, "
        f"after {player.step:,} agent steps{unfinished}; playing {plural(args.games, 'game')}, "
        f"{how}"
    )
    played = play(player, Chooser(player, args, device), args)
    summary = summarise(played, game)
    interval = ""
    if summary["interval"] is not None:
        interval = " (95 %: {:.1f} to {:.1f})".format(*summary["interval"])
    say(f"mean score {summary['mean']:.1f}{interval}, median {summary['median']:g}")
    say(f"lowest {summary['lowest']:g}, highest {summary['highest']:g}")
    if "human_normalised" in summary:
        say(f"human-normalised {summary['human_normalised']:.3f} (0: random play, 1: a human)")
    record = summary | {"agent_step": player.step, "scores": played.scores.tolist()}
    try:
        write_json(folder / "evaluation.json", record | record_provenance(args))
        say(f"every score: {folder / 'evaluation.json'}")
    except OSError as error:
        say(f"warning: {folder}/evaluation.json cannot be written: {describe_os(error)}")
    if args.gif:
        best = int(played.scores.argmax())
        say(f"drawing game {best} ({played.scores[best]:g}, {played.lengths[best]:,} steps)")
        pictures = draw_game(player, played.actions[best], args.seed + best, device)
        write_gif(Path(args.gif), pictures)
        say(args.gif)
    return 0


def run():
    """Run the command line, as `hr-evaluate` and `python -m lab.evaluate` do."""
    launch(main, Args)


if __name__ == "__main__":
    run()
