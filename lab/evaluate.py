"""How well a checkpoint plays: many games at once, each from its own seed, and the best one seen.

    python evaluate.py runs/NAME                       30 greedy games: mean, interval, normalised
    python evaluate.py runs/NAME --epsilon 0.05 --gif best.gif

PPO plays its most likely action, or with --sample draws from its policy as in training. Games are
those of training: no-ops at the start, FIRE after a life lost, all lives, raw scores.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import tyro
from PIL import Image, ImageDraw
from tqdm import tqdm

from lab.common.cli import UsageError, check_device, counted, launch, require, say, variant_name
from lab.common.device import pick_device
from lab.common.stats import mean_over_games, normalised, reference_scores
from lab.sweep.plan import ALGORITHMS, script
from lab.training.atari import AtariEnvs, game_title, resolve_game
from lab.training.checkpoint import newest_whole, written_whole
from lab.training.encoder import hidden_layers
from lab.training.runfolder import provenance, read_config, saved_flags, saved_with, write_json
from metrics import dead_neurons

SCALE = 3  # pixels of the picture per pixel of the game
CELL = 8  # pixels of a unit
MOST_FRAMES = 1_000  # of a GIF; of a longer game every second, third, ... step is shown
MS_PER_STEP = 67  # 4 emulator frames at 60 a second


@dataclass
class Args:
    """Play the newest checkpoint of a run, without learning. A step is 4 emulator frames."""

    run: Annotated[str, tyro.conf.Positional] = ""
    """folder of a run"""
    games: int = 30
    """games to play, all at once, each to its end"""
    epsilon: float = 0.0
    """chance of a random action"""
    sample: bool = False
    """PPO: draw actions from the policy, instead of the most likely one"""
    seed: int = 100_000
    """of the first game and of the actions; training has small ones"""
    gif: str = ""
    """file for a GIF of the best game, with the units of z and the value beside it"""
    device: str = "auto"
    """auto, cpu or cuda"""


def check(args: Args):
    """UsageError for a flag that cannot work, before anything is made."""
    if not args.run:
        raise UsageError("no run: name its folder, such as runs/NAME")
    require(args, "between 1 and 1024", lambda value: 1 <= value <= 1024, "games")
    require(args, "in [0, 1]", lambda value: 0 <= value <= 1, "epsilon")
    most = 2**31 - 1 - args.games
    require(args, f"between 0 and {most}", lambda value: 0 <= value <= most, "seed")
    check_device(args)
    if args.gif:
        if Path(args.gif).suffix.lower() != ".gif":
            raise UsageError(f"--gif {args.gif} must end in .gif, such as best.gif")
        folder = str(Path(args.gif).parent)
        if not Path(folder).is_dir():
            raise UsageError(f"--gif {args.gif}: there is no folder {folder}")


class Player(NamedTuple):
    """A network that plays: its run's flags, algorithm and agent steps of learning."""

    network: torch.nn.Module
    algorithm: str
    flags: object  # Args of the script
    step: int


def load(folder: Path, device: torch.device) -> Player:
    """The newest checkpoint of a run. UsageError if there is none that can be used."""
    config = read_config(folder, "")
    algorithm = config["algorithm"]
    if algorithm not in ALGORITHMS:
        raise UsageError(f"{folder}: its algorithm is {algorithm!r}, not one of {ALGORITHMS}")
    module = script(algorithm)
    flags = saved_flags(module.Args, folder, config, {}, "")
    _, content, problems = newest_whole(folder, saved_with(config["flags"]))
    for problem in problems:
        say(f"{problem}: playing the checkpoint before it")
    envs = AtariEnvs(flags.env_id, 1, 0)
    num_actions = int(envs.single_action_space.n)
    envs.close()
    network = (module.Agent if algorithm == "ppo" else module.QNetwork)(num_actions, flags)
    try:
        state, step = content["state"], int(content["state"]["step"])
        network.load_state_dict(state["agent" if algorithm == "ppo" else "q_network"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"{folder}: its checkpoint does not fit: {error}") from None
    network = network.to(device, memory_format=torch.channels_last)
    return Player(network, algorithm, flags, step)


class Chooser:
    """Actions and values of a player; random choices from a generator of its own."""

    def __init__(self, player: Player, args: Args, device: torch.device):
        self.player, self.args, self.device = player, args, device
        self.rng = np.random.default_rng(args.seed)

    @torch.no_grad()
    def __call__(self, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """obs uint8 (games, 4, 84, 84) -> actions (games,), values (games,): max Q, or PPO's V."""
        out = self.player.network(torch.from_numpy(obs).to(self.device))
        if self.player.algorithm == "ppo":
            logits, values = out
        else:
            logits, values = out, out.amax(dim=1)
        logits = logits.double().cpu().numpy()
        if self.args.sample:  # Gumbel's way to draw from a categorical distribution
            logits = logits + self.rng.gumbel(size=logits.shape)
        actions = logits.argmax(axis=1)
        explore = self.rng.random(len(obs)) < self.args.epsilon
        random = self.rng.integers(logits.shape[1], size=len(obs))
        return np.where(explore, random, actions), values.float().cpu().numpy()


class Played(NamedTuple):
    """What became of the games: raw scores, lengths in agent steps, all actions of each."""

    scores: np.ndarray  # (games,)
    lengths: np.ndarray  # (games,)
    actions: list[np.ndarray]  # (games,) arrays (steps,)


def play(player: Player, choose: Chooser, args: Args) -> Played:
    """Every game once, to its end: none counts twice as it was short, and none is cut off."""
    envs = AtariEnvs(player.flags.env_id, args.games, args.seed, **protocol(player))
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
    return Played(scores, lengths, [every[: lengths[i], i] for i in range(args.games)])


def protocol(player: Player) -> dict:
    return {"sticky_actions": player.flags.sticky_actions}


def summary(played: Played, game: str) -> dict:
    """Mean with its 95 % interval (Student's t over games), and what else says how it plays."""
    scores = played.scores
    mean, low, high = mean_over_games([scores])
    found = {
        "games": len(scores),
        "mean": mean,
        "interval": None if math.isnan(low) else [low, high],
        "median": float(np.median(scores)),
        "lowest": float(scores.min()),
        "highest": float(scores.max()),
        "mean_length_agent_steps": float(played.lengths.mean()),
    }
    if game in reference_scores():
        found["human_normalised"] = float(normalised(mean, *reference_scores()[game]))
    return found


@torch.no_grad()
def draw_game(player: Player, actions: np.ndarray, seed: int, device) -> Iterator[Image.Image]:
    """The game of these actions again, a picture per step: screen, units of z, value so far.

    A unit is blue (negative) or red (positive), the stronger the larger; one that is dead over this
    game, by the paper's test, is crossed out.
    """
    envs = AtariEnvs(player.flags.env_id, 1, seed, **protocol(player))
    obs, _ = envs.reset()
    screens, units, values = [], [], []
    stride = math.ceil(len(actions) / MOST_FRAMES)
    for t, action in enumerate(actions):
        if t % stride == 0:
            frames = torch.from_numpy(obs).to(device)
            units.append(hidden_layers(player.network, frames, False)["z"][0].float().cpu())
            out = player.network(frames)
            values.append(float(out[1] if player.algorithm == "ppo" else out.amax()))
            screens.append(obs[0, -1].copy())
        obs, *_ = envs.step(np.array([action]))
    envs.close()
    z = torch.stack(units)
    dead = dead_neurons(z).numpy() if len(z) > 1 else np.zeros(z.shape[1], bool)
    panel = unit_panels(z.numpy(), dead)
    # One at a time: a thousand of them take half a gigabyte.
    return (compose(screen, panel[t], values, t, dead) for t, screen in enumerate(screens))


def unit_panels(z: np.ndarray, dead: np.ndarray) -> np.ndarray:
    """z (steps, units) -> uint8 (steps, h, w, 3), 32 units a row."""
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


def compose(screen, panel, values: list[float], t: int, dead: np.ndarray) -> Image.Image:
    """One picture: screen at the left, units at the right, the value up to step t below."""
    height, width = panel.shape[:2]
    side = 84 * SCALE
    picture = Image.new("RGB", (side + width + 24, max(side, height + 20) + 76), "white")
    picture.paste(Image.fromarray(screen).resize((side, side), Image.Resampling.NEAREST), (8, 8))
    picture.paste(Image.fromarray(panel), (side + 16, 24))
    draw = ImageDraw.Draw(picture)
    draw.text(
        (side + 16, 8),
        f"units of z; crossed: {dead.mean():.0%}, dead in these {len(values)} steps",
        fill="black",
    )
    top, bottom = picture.height - 52, picture.height - 8
    draw.text((8, top - 14), f"value {values[t]:.2f}", fill="black")
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
    """Whole, or not at all. UsageError if it cannot be written."""
    reduced = (picture.quantize(64) for picture in pictures)
    first = next(reduced)
    try:
        with written_whole(path) as file:
            more = {"append_images": reduced, "duration": MS_PER_STEP, "loop": 0}
            first.save(file, format="GIF", save_all=True, **more)
    except OSError as error:
        raise UsageError(f"--gif {path}: {error.strerror or error}") from None


def main(args: Args) -> int:
    check(args)
    folder = Path(args.run)
    device = pick_device(args.device)
    player = load(folder, device)
    if args.sample and player.algorithm != "ppo":
        raise UsageError(f"--sample is for PPO; this is a run of {player.algorithm}: use --epsilon")
    game = game_title(resolve_game(player.flags.env_id))
    total = player.flags.total_timesteps
    of = "" if player.step >= total else f" of {total:,}, an unfinished run"
    say(
        f"{game}, {player.algorithm}, {variant_name(player.flags)}, seed {player.flags.seed}, "
        f"after {player.step:,} agent steps{of}; playing {counted(args.games, 'game')}, "
        f"epsilon {args.epsilon:g}"
    )
    played = play(player, Chooser(player, args, device), args)
    found = summary(played, game)
    low, high = found["interval"] or (math.nan, math.nan)
    between = "" if math.isnan(low) else f" (95 %: {low:.1f} to {high:.1f})"
    say(f"mean score {found['mean']:.1f}{between}, median {found['median']:g}")
    say(f"lowest {found['lowest']:g}, highest {found['highest']:g}")
    if "human_normalised" in found:
        say(f"human-normalised {found['human_normalised']:.3f} (0: random play, 1: a human)")
    record = found | {"agent_step": player.step, "scores": played.scores.tolist()}
    try:
        write_json(folder / "evaluation.json", record | provenance(args))
        say(f"every score: {folder / 'evaluation.json'}")
    except OSError as error:
        say(f"warning: {folder}/evaluation.json cannot be written: {error.strerror}")
    if args.gif:
        best = int(played.scores.argmax())
        say(f"drawing game {best} ({played.scores[best]:g}, {played.lengths[best]:,} steps)")
        pictures = draw_game(player, played.actions[best], args.seed + best, device)
        write_gif(Path(args.gif), pictures)
        say(args.gif)
    return 0


if __name__ == "__main__":
    launch(main, Args)
