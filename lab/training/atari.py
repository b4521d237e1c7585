"""The environment boundary: parallel Atari games under the paper's protocol, exact and countable.

Frame skip 4 with the maximum over the last two frames, 84 x 84 grey, 4 frames stacked (zeros before
a game's first), FIRE pressed at the start of a game and after a life loss where a game has it, up
to 28 no-ops after the first FIRE or 29 without one, a life loss ends the bootstrap but not the
game, rewards clipped to [-1, 1], no sticky actions unless asked for. Emulation, preprocessing and
threads are ale-py's `AtariVectorEnv`.

Units: a step here is an agent step, which is 4 emulator frames.
"""

import difflib
import re

import gymnasium
import numpy as np
from ale_py import Action, ALEInterface, AtariVectorEnv
from ale_py.roms import get_rom_path
from gymnasium.vector import AutoresetMode

FRAME_SKIP = 4
# The emulator cannot save its state; a seeded reset and the actions since then reproduce it. A game
# is seeded anew at its end once its log has grown past this many agent steps: playing the log back
# stays short, and the 0.1 s of a seeded reset stay rare.
RESEED_AFTER = 10_000
# Arrays, one element or obs per game, that hold what the emulator does not know of a game.
SAVED = ("obs", "seeds", "reseeds", "log_lengths", "press_fire", "returns", "lengths", "game_start")


def resolve_game(env_id: str) -> str:
    """Return the ROM id of a game by any of its usual names.

    Breakout, breakout, ALE/Breakout-v5 and BreakoutNoFrameskip-v4 all give "breakout". Raises
    ValueError, with the closest names if any is close, for anything else.
    """
    # The registered games, not all shipped ROMs: the emulator ends the process on the others.
    specs = (spec for spec in gymnasium.registry.values() if spec.namespace == "ALE")
    known = {spec.kwargs["game"].replace("_", ""): spec.kwargs["game"] for spec in specs}
    name = re.sub(r"^ALE/", "", env_id.strip(), flags=re.IGNORECASE)
    name = re.sub(r"(NoFrameskip|Deterministic)?-v\d+$", "", name, flags=re.IGNORECASE)
    name = name.replace("_", "").replace(" ", "").lower()
    if name in known:
        return known[name]
    # Above 0.7 no environment of gymnasium's is close to a game: hopper is not gopher.
    closest = difflib.get_close_matches(name, known, n=3, cutoff=0.7)
    hint = "these scripts play the Atari games of ale-py, such as Breakout, Pong or Seaquest"
    if closest:
        hint = f"did you mean {', '.join(game_title(known[match]) for match in closest)}?"
    raise ValueError(f"unknown game {env_id!r}: {hint}")


def game_title(rom: str) -> str:
    """Return the name used in run names and tables: "space_invaders" -> "SpaceInvaders"."""
    return rom.title().replace("_", "")


def make_emulator(game: str, num_envs: int, num_threads: int, sticky: float, **look):
    """Make ale-py's vector environment for a ROM id; `look` is about its pictures alone."""
    return AtariVectorEnv(
        game,
        num_envs,
        num_threads=num_threads,
        # Truncated here, not there: the last frame of its `final_obs` is a mix of earlier ones.
        max_num_frames_per_episode=2**31 - 1,
        repeat_action_probability=sticky,
        autoreset_mode=AutoresetMode.SAME_STEP,
        frameskip=FRAME_SKIP,
        noop_max=30,
        # Not `episodic_life`, which resets the whole game at a life loss.
        episodic_life=False,
        life_loss_info=True,
        reward_clipping=False,  # summed raw in `AtariEnvs`, and clipped there
        use_fire_reset=True,
        **look,
    )


def make_screen(game: str, seed: int, sticky: float = 0.0):
    """Make one game that shows its own colours, in its own size, and start it from a seed.

    Given the executed actions of a game of `AtariEnvs` from the same seed it shows that game: obs
    (1, 1, height, width, 3). Returns the emulator and the first obs.
    """
    single = ALEInterface()
    single.loadROM(get_rom_path(game))
    height, width = single.getScreenDims()
    look = {"grayscale": False, "img_height": height, "img_width": width, "stack_num": 1}
    emulator = make_emulator(game, 1, 1, sticky, **look)
    return emulator, emulator.reset(seed=np.array([seed]))[0]


class AtariEnvs(gymnasium.vector.VectorEnv):
    """`num_envs` copies of one game, stepped together, each reset by itself in the step it ends.

    `send(actions)` has the games play integers (num_envs,) and does not wait; `recv()` waits for
    them; `step(actions)` is the two in one. It returns

    - obs: uint8 (num_envs, 4, 84, 84), the newest frame last; of the next game where one ended
    - rewards: float32 (num_envs,), clipped to [-1, 1]
    - terminations: bool (num_envs,), True at a life loss and at the end of a game: no bootstrap.
      The last life counts as lost when the game ends: in some (BankHeist, Frogger, ...) it goes on
      for a while with 0 lives
    - truncations: bool (num_envs,), the game was cut off: bootstrap from `infos["final_obs"]`
    - infos: `executed_actions`, int64 (num_envs,): what was played, FIRE after a life loss in place
      of the action asked for; `game_over`, bool (num_envs,): a game ended or was truncated, obs is
      the first of the next; `lives`. Where a game was truncated `final_obs`, object (num_envs,),
      its last obs or None, with the mask `_final_obs`. Where one ended `episode`: `r` the sum of
      raw rewards, `l` its length in agent steps, `_r` and `_l` the mask of the games that ended.

    Env i starts from seed + i, and `reset()` without a seed goes on with seeds of its own: the same
    seed and actions give the same trajectory, whatever the number of threads. `num_threads` 0 means
    one per core (at most one per game); a game is truncated after `max_episode_frames` emulator
    frames, not counting its no-ops.

    Raises ValueError for an unknown game, fewer than 1 env, sticky_actions outside [0, 1), and for
    actions of a wrong shape, dtype or range (which would hang the emulator's threads).
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        seed: int,
        *,
        sticky_actions: float = 0.0,
        num_threads: int = 0,
        max_episode_frames: int = 108_000,
    ):
        self.game = resolve_game(env_id)
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, not {num_envs}")
        if not 0 <= sticky_actions < 1:
            raise ValueError(f"sticky_actions must lie in [0, 1), not {sticky_actions}")
        if num_threads < 0:
            raise ValueError(f"num_threads must be at least 0, not {num_threads}")
        if max_episode_frames < FRAME_SKIP:
            raise ValueError(f"max_episode_frames must be at least 4, not {max_episode_frames}")
        self._check_seed(seed, num_envs)
        self._games = make_emulator(self.game, num_envs, num_threads, sticky_actions)
        self.num_envs = num_envs
        self.single_observation_space = self._games.single_observation_space
        self.single_action_space = self._games.single_action_space
        self.observation_space = self._games.observation_space
        self.action_space = self._games.action_space
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

        meanings = list(self._games.ale.get_action_set())
        self._fire = meanings.index(Action.FIRE) if Action.FIRE in meanings else None
        self._max_steps = max_episode_frames // FRAME_SKIP
        self._seed, self._sticky = seed, sticky_actions
        self._was_reset = False
        self._playing = None  # the actions that were sent, until `recv`
        self._obs = None  # the newest
        self._press_fire = np.zeros(num_envs, dtype=bool)
        self._returns = np.zeros(num_envs, dtype=np.float64)
        self._lengths = np.zeros(num_envs, dtype=np.int64)
        self._game_start = np.zeros(num_envs, dtype=np.int64)  # in frames since the seeded reset
        # What reproduces each game: its seed and the actions since. A log is cut at the end of a
        # game, so it holds at most RESEED_AFTER actions and one game more.
        self._seeds = np.zeros(num_envs, dtype=np.int64)
        self._reseeds = np.zeros(num_envs, dtype=np.int64)
        log_length = RESEED_AFTER + self._max_steps + 1
        self._log = np.zeros((num_envs, log_length), dtype=np.uint8)
        self._log_lengths = np.zeros(num_envs, dtype=np.int64)

    @property
    def action_names(self) -> list[str]:
        """Return the names of the actions, such as NOOP, FIRE, RIGHT."""
        return [action.name for action in self._games.ale.get_action_set()]

    @property
    def obs(self) -> np.ndarray:
        """Return the newest observations (num_envs, 4, 84, 84)."""
        return self._obs

    @property
    def longest_log(self) -> int:
        """Return how many actions of a game there is room for, since it was last seeded."""
        return self._log.shape[1]

    @staticmethod
    def _check_seed(seed, num_envs):
        if not 0 <= seed <= 2**31 - 1 - num_envs:
            raise ValueError(f"seed must lie between 0 and {2**31 - 1 - num_envs}, not {seed}")

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Start all games anew: obs (num_envs, 4, 84, 84) and infos with `lives`."""
        if options:
            raise ValueError(f"reset takes no options, got {sorted(options)}")
        if seed is not None:
            self._check_seed(seed, self.num_envs)
            self._seed = seed
        if seed is not None or not self._was_reset:
            self._was_reset = True
            self._seeds[:] = self._seed + np.arange(self.num_envs)
            self._reseeds[:] = 0
        else:
            self._draw_seeds(np.arange(self.num_envs))
        self._log_lengths[:] = 0
        self._finish_step()
        obs, infos = self._games.reset(seed=self._seeds.copy())
        self._press_fire[:] = False
        self._returns[:] = 0
        self._lengths[:] = 0
        self._game_start[:] = self._game_starts(infos)
        self._obs = obs
        return obs, {"lives": infos["lives"]}

    def step(self, actions: np.ndarray):
        """Take one agent step in every game; see the docstring of the class."""
        self.send(actions)
        return self.recv()

    def send(self, actions: np.ndarray):
        """Have all games play these actions, in the emulator's own threads, and do not wait."""
        if not self._was_reset:
            raise RuntimeError("call reset() before the first step()")
        if self._playing is not None:
            raise RuntimeError("call recv() before the next send()")
        executed = self._checked_actions(actions)
        if self._fire is not None:
            executed[self._press_fire] = self._fire
        self._games.send(executed)
        self._playing = executed
        self._log[np.arange(self.num_envs), self._log_lengths] = executed
        self._log_lengths += 1

    def recv(self):
        """Return what came of the actions that were sent, as `step` does."""
        if self._playing is None:
            raise RuntimeError("call send() before recv()")
        executed, self._playing = self._playing, None
        obs, raw_rewards, terminations, _, ale_infos = self._games.recv()
        self._returns += raw_rewards
        self._lengths += 1
        # A life loss and the end of a game both read as a termination; only the latter starts a new
        # game, whose first frame lies at another distance from the emulator's frame counter.
        ended = terminations & (self._game_starts(ale_infos) != self._game_start)
        truncations = (self._lengths >= self._max_steps) & ~ended
        game_over = ended | truncations
        self._press_fire = terminations & ~game_over

        infos = {"executed_actions": executed, "game_over": game_over, "lives": ale_infos["lives"]}
        if truncations.any():
            infos["final_obs"] = np.full(self.num_envs, None, dtype=object)
            for i in np.flatnonzero(truncations):
                infos["final_obs"][i] = obs[i].copy()
            infos["_final_obs"] = truncations.copy()
        if game_over.any():
            infos["episode"] = {
                "r": np.where(game_over, self._returns, 0.0),
                "l": np.where(game_over, self._lengths, 0),
                "_r": game_over.copy(),
                "_l": game_over.copy(),
            }
            infos["_episode"] = game_over.copy()
            self._returns[game_over] = 0
            self._lengths[game_over] = 0
            reseed = truncations | (ended & (self._log_lengths > RESEED_AFTER))
            if reseed.any():
                obs, ale_infos = self._reseed(reseed)
                infos["lives"] = ale_infos["lives"]
            self._game_start[game_over] = self._game_starts(ale_infos)[game_over]
        self._obs = obs
        rewards = np.clip(raw_rewards, -1, 1).astype(np.float32)
        return obs, rewards, terminations, truncations, infos

    @staticmethod
    def _game_starts(ale_infos) -> np.ndarray:
        """Return the emulator's frame counter at the start of each running game."""
        return ale_infos["frame_number"] - ale_infos["episode_frame_number"]

    def _checked_actions(self, actions) -> np.ndarray:
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(
                f"actions must be integers of shape ({self.num_envs},): "
                f"got {actions.dtype}, shape {actions.shape}"
            )
        count = self.single_action_space.n
        if actions.min() < 0 or actions.max() >= count:
            raise ValueError(f"actions must lie between 0 and {count - 1}: got {actions.tolist()}")
        return actions.astype(np.int64)  # a copy: FIRE may replace some

    def _draw_seeds(self, indices):
        """Draw seeds for these envs, a function of the first seed, the env and a count alone."""
        for i in indices:
            self._reseeds[i] += 1
            entropy = [self._seed, int(i), int(self._reseeds[i])]
            state = np.random.SeedSequence(entropy).generate_state(1)[0]
            self._seeds[i] = state & 0x7FFFFFFF

    def _finish_step(self):
        """Wait for games that are playing: started anew meanwhile, they would end the process."""
        if self._playing is not None:
            self._games.recv()
            self._playing = None

    def _reseed(self, mask):
        """Start these games anew from fresh seeds and with empty logs: obs and infos of all."""
        self._draw_seeds(np.flatnonzero(mask))
        self._log_lengths[mask] = 0
        return self._games.reset(seed=self._seeds[mask].copy(), options={"reset_mask": mask})

    def state_dict(self) -> dict:
        """Return all from which `load_state_dict` brings the games back: a copy, small arrays.

        The emulator's own state is not in it, but the seed of each game and the actions since.
        """
        if not self._was_reset:
            raise RuntimeError("call reset() before state_dict()")
        if self._playing is not None:
            raise RuntimeError("call recv() before state_dict()")
        lengths = self._log_lengths
        actions = [self._log[i, :length] for i, length in enumerate(lengths)]
        state = {name: getattr(self, f"_{name}").copy() for name in SAVED}
        return self._same() | state | {"seed": self._seed, "actions": np.concatenate(actions)}

    def _same(self) -> dict:
        """Return what has to be the same where games are saved and where they are loaded."""
        return {
            "game": self.game,
            "num_envs": self.num_envs,
            "sticky_actions": self._sticky,
            "max_steps": self._max_steps,
        }

    def load_state_dict(self, state: dict) -> np.ndarray:
        """Go on exactly where `state_dict` was taken; return the obs (num_envs, 4, 84, 84) of then.

        Plays the logged actions back, at the speed of the emulator: of each game at most
        RESEED_AFTER steps and the rest of a game. Raises ValueError, naming what differs, for the
        state of another game, number of envs or sticky_actions, and where the games do not come
        back to the same obs.
        """
        for name, value in self._same().items():
            if state[name] != value:
                raise ValueError(
                    f"{name} was {state[name]!r} where the games were saved, not {value!r}"
                )
        for name in SAVED:
            setattr(self, f"_{name}", np.asarray(state[name]).copy())
        self._seed, self._was_reset = state["seed"], True

        # Shorter logs start later, so that all end together. A game that has not started plays
        # anything: it is reset when it does.
        last = int(self._log_lengths.max())
        starts = last - self._log_lengths
        played = np.zeros((last, self.num_envs), dtype=np.int64)
        logs = np.split(np.asarray(state["actions"]), np.cumsum(self._log_lengths)[:-1])
        for i, log in enumerate(logs):
            self._log[i, : len(log)] = log
            played[starts[i] :, i] = log
        self._finish_step()
        obs, infos = self._games.reset(seed=self._seeds.copy())
        for t in range(last + 1):
            starting = starts == t
            if t > 0 and starting.any():
                seeds = self._seeds[starting].copy()
                obs, infos = self._games.reset(seed=seeds, options={"reset_mask": starting})
            if t < last:
                obs, *_, infos = self._games.step(played[t])
        same_start = np.array_equal(self._game_starts(infos), self._game_start)
        if not (same_start and np.array_equal(obs, self._obs)):
            raise ValueError("the games did not come back: was another ale-py in use?")
        return obs

    def close_extras(self, **kwargs):
        """Close the emulator's threads; gymnasium calls it from `close`."""
        self._games.close()
