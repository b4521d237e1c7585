"""The environment boundary against the raw emulator (`ALEInterface`), on real games."""

import gymnasium
import numpy as np
import pytest
from ale_py import Action, ALEInterface, AtariVectorEnv, LoggerMode, roms
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.training import atari
from lab.training.atari import AtariEnvs, make_screen, resolve_game

ALEInterface.setLoggerMode(LoggerMode.Error)


def play(envs, policy, steps):
    """Steps of (actions, obs, rewards, terminations, truncations, infos)."""
    for _ in range(steps):
        actions = policy()
        yield (actions, *envs.step(actions))


def random_policy(envs, seed=0):
    rng = np.random.default_rng(seed)
    return lambda: rng.integers(envs.single_action_space.n, size=envs.num_envs)


@pytest.mark.parametrize(
    "name", ["Breakout", "breakout", "ALE/Breakout-v5", "BreakoutNoFrameskip-v4", "Breakout-v4"]
)
def test_names_of_a_game(name):
    assert resolve_game(name) == "breakout"


def test_names_of_several_words():
    for name in ("SpaceInvaders", "space_invaders", "ALE/SpaceInvaders-v5"):
        assert resolve_game(name) == "space_invaders"
    assert atari.game_title("space_invaders") == "SpaceInvaders"


@pytest.mark.parametrize(
    ("name", "closest"),
    [("Breakut", "Breakout"), ("Seaqest", "Seaquest"), ("MrPacman", "MsPacman")],
)
def test_an_unknown_game_suggests_the_closest(name, closest):
    with pytest.raises(ValueError, match=f"unknown game '{name}': did you mean .*{closest}"):
        resolve_game(name)


@pytest.mark.parametrize("name", ["", "../../etc", "combat", "CartPole-v1"])
def test_what_is_no_game_is_refused(name):
    with pytest.raises(ValueError, match="unknown game"):
        resolve_game(name)


SPECS = gymnasium.registry.values()
OTHERS = sorted({spec.id for spec in SPECS if "game" not in spec.kwargs} - {"Blackjack-v1"})
GAMES = sorted({spec.name for spec in SPECS if spec.namespace == "ALE" and len(spec.name) > 5})


@pytest.mark.parametrize("name", [*OTHERS, "procgen-coinrun-v0", "MiniGrid-Empty-5x5-v0"])
def test_no_game_is_meant_by_what_is_none(name):
    """CartPole, Hopper and the like have no closest game."""
    match = "these scripts play the Atari games of ale-py, such as Breakout, Pong or Seaquest"
    with pytest.raises(ValueError, match=match):
        resolve_game(name)


@pytest.mark.parametrize("name", GAMES)
def test_a_game_with_a_wrong_letter_is_meant(name):
    for at in range(len(name)):
        with pytest.raises(ValueError, match=f"did you mean .*{name}"):
            resolve_game(f"{name[:at]}8{name[at + 1 :]}")


def native_game(rom):
    """A game of ale-py's own, without life-loss signal and clipping."""
    return AtariVectorEnv(
        rom,
        1,
        reward_clipping=False,
        episodic_life=False,
        life_loss_info=False,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )


@pytest.mark.parametrize("rom", ["breakout", "seaquest", "pong"])
def test_one_game_against_the_bare_emulator(rom):
    """No vector environment at all: the emulator's own rewards and lives, frame by frame."""
    envs = AtariEnvs(rom, 1, seed=2)
    _, infos = envs.reset()
    ale = ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(roms.get_rom_path(rom))
    meanings = ale.getMinimalActionSet()
    # A game starts with FIRE, then comes the random number of no-ops.
    ale.act(Action.FIRE)
    for _ in range(int(native_game(rom).reset(seed=2)[1]["frame_number"][0]) - 1):
        ale.act(Action.NOOP)
    assert ale.lives() == infos["lives"][0]
    total, score = 0.0, 0.0
    for _, _, rewards, terminations, truncations, infos in play(envs, random_policy(envs), 3_000):
        lives, reward = ale.lives(), 0.0
        for _ in range(4):
            if not ale.game_over():
                reward += ale.act(meanings[infos["executed_actions"][0]])
        total += reward
        score += rewards[0]
        assert rewards[0] == np.sign(reward)
        assert terminations[0] == (ale.lives() < lives or ale.game_over())
        assert not truncations[0]
        if ale.game_over():
            assert infos["episode"]["r"][0] == total
            break
        assert infos["lives"][0] == ale.lives()
    assert ale.game_over()
    assert total == score or rom == "seaquest"  # 20 points a fish there, clipped to 1


@pytest.mark.parametrize(
    "rom",
    ["bank_heist", "atlantis", "donkey_kong", "frogger", "turmoil"],
)
def test_the_fall_to_no_life_is_no_termination_while_the_game_goes_on(rom):
    """It goes on for some steps with 0 lives; other losses, and its end, are terminations."""
    envs = AtariEnvs(rom, 1, seed=1)
    lives = envs.reset()[1]["lives"][0]
    fell = False
    for _, _, _, (terminated,), _, infos in play(envs, random_policy(envs), 5_000):
        if infos["game_over"][0]:
            break
        assert terminated == (0 < infos["lives"][0] < lives)
        fell |= infos["lives"][0] == 0
        lives = infos["lives"][0]
    assert fell
    assert terminated


@pytest.mark.parametrize(
    ("rom", "frames"), [("breakout", [1, 1, 28, 29]), ("freeway", [0, 1, 28, 29])]
)
def test_no_ops_are_at_most_28_after_fire_and_29_without(rom, frames):
    """The emulator's frames before the first obs, of seeds that draw 0, 1, 28 and 29."""
    envs = AtariEnvs(rom, 1, seed=0)
    played = []
    for seed in (9, 34, 24, 4):
        envs.reset(seed=seed)
        played.append(envs._games.step(np.zeros(1, int))[-1]["frame_number"][0] - 4)
    assert played == frames


@pytest.mark.parametrize("rom", ["breakout", "seaquest", "pong", "freeway"])
def test_returns_lives_and_fire_over_many_games(rom):
    """ale-py's own environment, given the executed actions, shows the same games."""
    envs = AtariEnvs(rom, 2, seed=11)
    ale = [native_game(rom) for _ in range(2)]
    meanings = list(ale[0].ale.get_action_set())
    fire = meanings.index(Action.FIRE) if Action.FIRE in meanings else None
    first, _ = envs.reset()
    lives = np.zeros(2, int)
    for i in range(2):
        obs, infos = ale[i].reset(seed=11 + i)
        assert np.array_equal(obs[0], first[i])
        lives[i] = infos["lives"][0]
    raw_return, length, fire_due = np.zeros(2), np.zeros(2, int), np.zeros(2, bool)
    life_losses = games_ended = 0
    # 2,500 steps hold several whole games of each but Freeway, which is cut after 2,048.
    for actions, obs, rewards, terminations, truncations, infos in play(
        envs, random_policy(envs), 2_500
    ):
        executed = infos["executed_actions"]
        assert np.array_equal(executed, np.where(fire_due, fire or 0, actions))
        for i in range(2):
            raw_obs, reward, ended, cut, raw_infos = ale[i].step(executed[i : i + 1])
            raw_return[i] += reward[0]
            length[i] += 1
            assert rewards[i] == np.sign(reward[0])
            assert rewards.dtype == np.float32
            game_over = bool(ended[0] or cut[0])
            lost_life = not game_over and raw_infos["lives"][0] < lives[i]
            assert terminations[i] == (bool(ended[0]) or lost_life)
            assert truncations[i] == bool(cut[0])
            assert infos["game_over"][i] == game_over
            lives[i] = raw_infos["lives"][0]
            fire_due[i] = lost_life and fire is not None
            life_losses += lost_life
            if game_over:
                games_ended += 1
                assert infos["episode"]["_r"][i]
                assert infos["episode"]["r"][i] == raw_return[i]
                assert infos["episode"]["l"][i] == length[i]
                raw_return[i] = length[i] = 0
            else:
                assert "episode" not in infos or not infos["episode"]["_r"][i]
            assert np.array_equal(obs[i], raw_obs[0])
    assert games_ended >= 2
    if rom in ("breakout", "seaquest"):
        assert life_losses >= 4
    envs.close()


def test_a_life_loss_ends_the_bootstrap_but_not_the_game():
    envs = AtariEnvs("breakout", 1, seed=0)
    _, infos = envs.reset()
    lives, seen = infos["lives"][0], []
    for _, obs, _, terminations, _, infos in play(envs, random_policy(envs), 400):
        if terminations[0] and not infos["game_over"][0]:
            assert infos["lives"][0] == lives - 1
            assert obs[0, 0].any()  # no zero frame: the stack was not reset
            seen.append(infos["lives"][0])
        lives = infos["lives"][0]
        if infos["game_over"][0]:
            break
    assert seen == [4, 3, 2, 1]
    assert lives == 5


def test_truncation_brings_the_true_last_observation():
    """The same actions without the cut show what the last observation is."""
    cut = AtariEnvs("breakout", 3, seed=3, max_episode_frames=4 * 60)
    whole = AtariEnvs("breakout", 3, seed=3)
    cut.reset()
    whole.reset()
    policy = random_policy(cut)
    for step in range(1, 61):
        actions = policy()
        obs, _, terminations, truncations, infos = cut.step(actions)
        expected, _, expected_terminations, *_ = whole.step(actions)
        assert np.array_equal(terminations, expected_terminations)
        assert truncations.tolist() == infos["game_over"].tolist() == [step == 60] * 3
        if step < 60:
            assert np.array_equal(obs, expected)
            assert "final_obs" not in infos
    for i in range(3):
        assert np.array_equal(infos["final_obs"][i], expected[i])
    assert infos["_final_obs"].all()
    assert infos["episode"]["_r"].all()
    assert infos["episode"]["l"].tolist() == [60] * 3
    assert infos["lives"].tolist() == [5] * 3
    assert not obs[:, :3].any()  # new games: zeros before their first frames
    assert obs[:, 3].any()
    *_, (_, _, _, _, truncations, infos) = play(cut, policy, 60)
    assert truncations.all()  # and the count starts again
    assert infos["episode"]["l"].tolist() == [60] * 3


def test_one_game_is_truncated_while_the_others_go_on():
    """Started at different times, by a life loss more or less, the games stay apart."""
    envs = AtariEnvs("breakout", 2, seed=1, max_episode_frames=4 * 130)
    envs.reset()
    alone = 0
    before = None
    for _, obs, _, _, truncations, infos in play(envs, random_policy(envs), 1_500):
        if truncations.any() and not infos["game_over"].all():
            alone += 1
            going_on = int(np.flatnonzero(~infos["game_over"])[0])
            assert np.array_equal(obs[going_on, :3], before[going_on, 1:])
            assert infos["final_obs"][going_on] is None
        before = obs
    assert alone >= 2


def trajectory(num_threads, seed=5, steps=300, sticky_actions=0.25, reset_seed=None):
    envs = AtariEnvs("seaquest", 3, seed, num_threads=num_threads, sticky_actions=sticky_actions)
    obs, _ = envs.reset(seed=reset_seed)
    digest = [obs.tobytes()]
    for _, obs, rewards, terminations, truncations, infos in play(envs, random_policy(envs), steps):
        parts = (obs, rewards, terminations, truncations, infos["lives"])
        digest.append(b"".join(part.tobytes() for part in parts))
    envs.close()
    return digest


def test_same_seed_same_trajectory_for_1_and_2_threads():
    one = trajectory(1)
    assert one == trajectory(2) == trajectory(1)
    assert one == trajectory(1, seed=9, reset_seed=5)
    assert one != trajectory(1, seed=6)


def test_a_second_reset_starts_other_games():
    envs = AtariEnvs("seaquest", 2, seed=0, sticky_actions=0.25)

    def frames():
        envs.reset()
        return [step[1].tobytes() for step in play(envs, random_policy(envs), 40)]

    assert frames() != frames()


def test_long_logs_are_cut_by_a_seeded_reset(monkeypatch):
    """Past RESEED_AFTER the next game starts from a fresh seed, which alone reproduces it."""
    monkeypatch.setattr(atari, "RESEED_AFTER", 200)
    envs = AtariEnvs("breakout", 2, seed=1)
    envs.reset()
    reseeded = 0
    for _, obs, _, _, _, infos in play(envs, random_policy(envs), 900):
        state = envs.state_dict()
        for i in np.flatnonzero(infos["game_over"] & (state["log_lengths"] == 0)):
            reseeded += 1
            fresh = native_game("breakout")
            expected, expected_infos = fresh.reset(seed=state["seeds"][i : i + 1])
            assert np.array_equal(obs[i], expected[0])
            assert infos["lives"][i] == expected_infos["lives"][0]
    assert reseeded >= 4
    assert state["log_lengths"].max() < 900


GAMES = ("breakout", "pong", "seaquest", "space_invaders", "ms_pacman", "beam_rider")
GAMES += ("video_pinball", "freeway", "qbert", "enduro", "montezuma_revenge", "tennis")


@pytest.mark.parametrize("game", GAMES)
@settings(deadline=None, max_examples=2)
@given(
    num_envs=st.integers(1, 3),
    sticky_actions=st.sampled_from([0.0, 0.25]),
    seed=st.integers(0, 1000),
    before=st.integers(0, 200),
)
def test_saved_games_go_on_as_if_nothing_had_been(game, num_envs, sticky_actions, seed, before):
    """Through ends, truncations and reseedings; the games that come back are new ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atari, "RESEED_AFTER", 60)
        cut = {"sticky_actions": sticky_actions, "max_episode_frames": 4 * 100}
        envs = AtariEnvs(game, num_envs, seed, num_threads=1, **cut)
        obs, _ = envs.reset()
        for step in play(envs, random_policy(envs), before):
            obs = step[1]
        state = envs.state_dict()
        again = AtariEnvs(game, num_envs, seed + 1, num_threads=1, **cut)
        again.reset()
        assert np.array_equal(again.load_state_dict(state), obs)
        # What was saved is a copy: playing on does not reach it.
        rng = np.random.default_rng(seed)
        for _ in range(130):
            actions = rng.integers(envs.single_action_space.n, size=num_envs)
            assert equal(envs.step(actions), again.step(actions))
        assert equal(envs.state_dict(), again.state_dict())
        again.load_state_dict(state)
        assert equal(again.state_dict(), state)
        envs.close()
        again.close()


def equal(one, other):
    """Bit for bit, through tuples, dicts and arrays, also arrays of objects."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple) or (isinstance(one, np.ndarray) and one.dtype == object):
        return len(one) == len(other) and all(map(equal, one, other))
    return np.array_equal(one, other)


def test_games_that_do_not_fit_are_refused():
    envs = AtariEnvs("pong", 2, seed=1)
    with pytest.raises(RuntimeError, match="before state_dict"):
        envs.state_dict()
    envs.reset()
    state = envs.state_dict()
    others = (("breakout", 2, {}), ("pong", 3, {}), ("pong", 2, {"sticky_actions": 0.1}))
    for (game, num_envs, flags), name in zip(others, ("game", "num_envs", "sticky"), strict=True):
        with pytest.raises(ValueError, match=f"{name}.* where the games were saved, not"):
            AtariEnvs(game, num_envs, 1, **flags).load_state_dict(state)
    with pytest.raises(ValueError, match="did not come back"):
        envs.load_state_dict(state | {"obs": state["obs"] + 1})


def test_the_log_reproduces_the_games():
    """Seed and logged actions, played back on the raw emulator, lead to the same frame."""
    envs = AtariEnvs("breakout", 2, seed=4, sticky_actions=0.25)
    envs.reset()
    *_, (_, obs, *_) = play(envs, random_policy(envs), 500)
    state = envs.state_dict()
    logs = np.split(state["actions"], np.cumsum(state["log_lengths"])[:-1])
    for i in range(2):
        game = AtariVectorEnv(
            "breakout", 1, repeat_action_probability=0.25, autoreset_mode=AutoresetMode.SAME_STEP
        )
        game.reset(seed=state["seeds"][i : i + 1])
        for action in logs[i]:
            replayed, *_ = game.step(np.array([action], dtype=np.int64))
        assert np.array_equal(replayed[0], obs[i])


@pytest.mark.parametrize(
    "actions",
    [[0, 4], [-1, 0], [0], [[0, 0]], [0.0, 1.0], [True, False]],
    ids=["too large", "negative", "too few", "2-d", "floats", "bools"],
)
def test_bad_actions_are_refused_before_they_hang_the_emulator(actions):
    envs = AtariEnvs("breakout", 2, seed=0)
    envs.reset()
    with pytest.raises(ValueError, match="actions must"):
        envs.step(np.array(actions))
    envs.step(np.array([0, 3]))  # and it goes on


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_envs": 0}, "num_envs"),
        ({"sticky_actions": 1.0}, "sticky_actions"),
        ({"num_threads": -1}, "num_threads"),
        ({"seed": -1}, "seed"),
        ({"max_episode_frames": 0}, "max_episode_frames"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        AtariEnvs(**({"env_id": "breakout", "num_envs": 1, "seed": 0} | arguments))


def test_step_before_reset_is_an_error():
    envs = AtariEnvs("breakout", 1, seed=0)
    for step in (envs.step, envs.send):
        with pytest.raises(RuntimeError, match="reset"):
            step(np.array([0]))
    with pytest.raises(RuntimeError, match="send"):
        envs.recv()


def test_steps_in_two_parts_are_steps():
    """Also where much time passes between them, and with what is refused in between."""
    whole, parts = (AtariEnvs("breakout", 2, seed=3, max_episode_frames=400) for _ in range(2))
    for envs in (whole, parts):
        envs.reset()
    policy = random_policy(whole)
    with pytest.raises(RuntimeError, match=r"call send\(\) before recv\(\)"):
        parts.recv()
    for t in range(250):  # past life losses, and a truncation at 100
        actions = policy()
        sent = actions.copy()
        parts.send(sent)
        sent[:] = 0  # the games have their own
        if t == 100:
            with pytest.raises(RuntimeError, match=r"call recv\(\) before the next send\(\)"):
                parts.send(actions)
            with pytest.raises(RuntimeError, match=r"call recv\(\) before the next send\(\)"):
                parts.step(actions)
            with pytest.raises(RuntimeError, match=r"call recv\(\) before state_dict\(\)"):
                parts.state_dict()
        one, other = whole.step(actions), parts.recv()
        assert all(equal(*pair) for pair in zip(one, other, strict=True)), t
        with pytest.raises(RuntimeError, match=r"call send\(\) before recv\(\)"):
            parts.recv()
    assert equal(whole.state_dict(), parts.state_dict())
    for envs in (whole, parts):
        envs.close()


@pytest.mark.parametrize("then", ["reset", "load_state_dict", "close"])
def test_games_that_are_playing_can_be_started_anew(then):
    """What they were sent is played to its end, and no answer of it is left over."""
    envs, own = (AtariEnvs("breakout", 2, seed=3) for _ in range(2))
    for games in (envs, own):
        games.reset()
        for _ in range(20):
            games.step(np.array([1, 3]))
    state = envs.state_dict()
    envs.send(np.array([2, 2]))
    if then == "close":
        envs.close()
        return
    if then == "reset":
        one, other = envs.reset(seed=9)[0], own.reset(seed=9)[0]
        assert np.array_equal(one, other)
    else:
        envs.load_state_dict(state)
    for _ in range(20):
        one, other = (games.step(np.array([3, 0])) for games in (envs, own))
        assert all(equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_a_screen_in_colour_shows_the_game_of_its_seed(sticky):
    """Driven by the executed actions: every reward and termination, through the ends of games."""
    envs = AtariEnvs("Breakout", 1, seed=9, sticky_actions=sticky)
    envs.reset()
    screen, first = make_screen("breakout", 9, sticky)
    assert first.shape == (1, 1, 210, 160, 3)
    assert (first[..., 0] != first[..., 2]).any()
    rng, ends = np.random.default_rng(0), 0
    for _ in range(700):
        _, rewards, terminations, _, infos = envs.step(rng.integers(4, size=1))
        _, raw, same, *_ = screen.step(infos["executed_actions"])
        assert np.clip(raw, -1, 1).tolist() == rewards.tolist()
        assert same.tolist() == terminations.tolist()
        ends += infos["game_over"].sum()
    assert ends >= 2
    envs.close()
    screen.close()
