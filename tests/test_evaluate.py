"""Playing a checkpoint: scores against a plain loop over single games; the GIF shows that game."""

import io
import json
import math
import shutil
import zlib

import numpy as np
import pytest
import torch
from algorithms import SCRIPTS, SHORT, parse, saved_weights
from PIL import Image

from lab import evaluate
from lab.common.cli import UsageError
from lab.evaluate import Chooser, load, play, summarise
from lab.training.atari import AtariEnvs
from lab.training.checkpoint import FORMAT, Footer, read_state

RUNS = {
    "dqn": (),
    "ppo": ("--sticky-actions", 0.25, "--env-id", "Pong"),
    "pqn": ("--precision", "bf16"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short run of each algorithm."""
    folders = {}
    for algorithm, flags in RUNS.items():
        runs_dir = tmp_path_factory.mktemp(algorithm)
        flags = (*SHORT[algorithm], *flags, "--latent-dim", 32, "--device", "cpu")
        args = parse(algorithm, *flags, "--runs-dir", runs_dir)
        assert SCRIPTS[algorithm].main(args) == 0
        (folders[algorithm],) = runs_dir.iterdir()
    return folders


class CutGames(AtariEnvs):
    """Games cut off after 60 steps, where it is not the end of a game that is tested."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options, max_episode_frames=4 * 60)


@pytest.mark.parametrize(
    ("algorithm", "games"), [("dqn", AtariEnvs), ("ppo", CutGames), ("pqn", CutGames)]
)
def test_every_game_is_that_of_its_seed_played_alone(algorithm, games, trained, monkeypatch):
    """One game after the other, by the weights in model.pt; those of DQN to their ends."""
    monkeypatch.setattr(evaluate, "AtariEnvs", games)
    args = evaluate.Args(str(trained[algorithm]), games=2, seed=50)
    player = load(trained[algorithm], torch.device("cpu"))
    weights = saved_weights(trained[algorithm])
    assert player.step == {"dqn": 160, "ppo": 64, "pqn": 64}[algorithm]
    player.network.load_state_dict({name: 0 * weight for name, weight in weights.items()})
    player.network.load_state_dict(weights)
    played = play(player, Chooser(player, args, torch.device("cpu")), args)
    for i in range(2):
        sticky = player.flags.sticky_actions
        envs = games(player.flags.env_id, 1, 50 + i, sticky_actions=sticky)
        obs, _ = envs.reset()
        score = length = 0
        while True:
            with torch.no_grad():
                out = player.network(torch.from_numpy(obs))
            out = out[0] if algorithm == "ppo" else out
            obs, _, _, _, infos = envs.step(out.argmax(dim=1).numpy())
            length += 1
            if "episode" in infos:
                score = infos["episode"]["r"][0]
                break
        envs.close()
        assert (score, length) == (played.scores[i], played.lengths[i])
        assert len(played.actions[i]) == length
        assert (length == 60) == (games is CutGames)


@pytest.fixture
def small_run(trained, tmp_path):
    """A folder with the config.json and the model.pt of a finished run, and no more."""
    folder = tmp_path / "small_run"
    folder.mkdir()
    for name in ("config.json", "model.pt"):
        shutil.copy(trained["pqn"] / name, folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_weights_of_a_finished_run_play_without_its_checkpoints(dtype, trained, small_run):
    """model.pt and config.json are enough; weights in fp16 play as those weights in fp32."""
    weights = {name: weight.to(dtype) for name, weight in saved_weights(trained["pqn"]).items()}
    torch.save(weights, small_run / "model.pt")
    player = load(small_run, torch.device("cpu"))
    assert player.step == 64
    loaded = player.network.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weight.float()) for name, weight in weights.items())
    if dtype == torch.float32:
        with_checkpoint = load(trained["pqn"], torch.device("cpu")).network.state_dict()
        assert all(torch.equal(loaded[name], with_checkpoint[name]) for name in loaded)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("env_id", "CartPole-v1", "unknown game 'CartPole-v1'"),
        ("activation", "foo", "--activation 'foo'"),
        ("combine", "foo", "--combine 'foo'"),
        ("encoder", "foo", "--encoder 'foo'"),
        ("init", "foo", "--init 'foo'"),
        ("apply_to", "foo", "--apply-to 'foo'"),
        ("branches", 0, "--branches must be at least 1"),
        ("branches", 10**9, "--branches 1000000000 needs"),
        ("latent_dim", 0, "--latent-dim must be"),
        ("width", -1.0, "--width must be above 0"),
        ("width", 1e9, "needs|--metrics-samples must be at least"),
        ("sticky_actions", 2.0, "--sticky-actions must be"),
    ],
)
def test_a_flag_that_no_run_can_have_is_refused(flag, value, message, small_run):
    config = json.loads((small_run / "config.json").read_text())
    config["flags"][flag] = value
    (small_run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=rf"small_run/config.json: .*({message})"):
        load(small_run, torch.device("cpu"))


def test_a_run_of_a_gpu_plays_on_a_cpu(small_run):
    config = json.loads((small_run / "config.json").read_text())
    config["flags"] |= {"device": "cuda", "precision": "tf32"}
    (small_run / "config.json").write_text(json.dumps(config))
    assert load(small_run, torch.device("cpu")).step == 64


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # the weights are the largest part by far
    path.write_bytes(content)


def expand(path):
    weights = torch.load(path, weights_only=True)
    weights["head.bias"] = torch.zeros(1).half().expand(2**44)
    torch.save(weights, path)


def outgrow(path):
    with path.open("r+b") as file:
        file.truncate(2 * 10**11)  # holes, which take no room


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_bit, "is damaged"),
        (expand, "head.bias is larger than what is stored"),
        (outgrow, "it is larger than half of the free memory"),
        (lambda path: (path.unlink(), path.symlink_to("nowhere")), "No such file"),
        (lambda path: (path.unlink(), path.mkdir()), "no regular file|Is a directory"),
    ],
)
def test_a_damaged_model_is_refused(damage, message, small_run):
    damage(small_run / "model.pt")
    with pytest.raises(UsageError, match=message):
        load(small_run, torch.device("cpu"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is cut off, or holds more than tensors"),
        ([1.0], "holds no weights by name"),
        ({"head.bias": torch.zeros(4)}, "network lacks"),
        ({"head.bias": {"a": torch.tensor([math.nan])}}, "network lacks"),
        ({"f": print}, "could run code"),
    ],
)
def test_a_model_that_no_run_has_written_is_refused(content, message, small_run):
    model = small_run / "model.pt"
    if content == b"":
        model.write_bytes(content)
    else:
        torch.save(content, model)
    with pytest.raises(UsageError, match=message):
        load(small_run, torch.device("cpu"))
    model.unlink()
    with pytest.raises(UsageError, match="no whole checkpoint"):
        load(small_run, torch.device("cpu"))


def test_random_play_and_drawn_actions_have_their_shares(trained):
    device = torch.device("cpu")
    player = load(trained["ppo"], device)
    obs = np.random.default_rng(0).integers(256, size=(600, 4, 84, 84), dtype=np.uint8)[:1]
    obs = np.repeat(obs, 600, axis=0)
    with torch.no_grad():
        probabilities = player.network(torch.from_numpy(obs[:1]))[0].softmax(dim=1)[0].numpy()
    greedy, _ = Chooser(player, evaluate.Args("", epsilon=0.0), device)(obs)
    assert set(greedy) == {probabilities.argmax()}
    drawn, values = Chooser(player, evaluate.Args("", sample=True), device)(obs)
    shares = np.bincount(drawn, minlength=6) / 600
    assert np.abs(shares - probabilities).max() < 0.08
    assert values.shape == (600,)
    half, _ = Chooser(player, evaluate.Args("", epsilon=0.6), device)(obs)
    assert np.mean(half == probabilities.argmax()) == pytest.approx(0.4 + 0.6 / 6, abs=0.08)


def test_summary_is_scipys_and_humans():
    scores = np.array([3.0, 5.0, 10.0])
    played = evaluate.PlayedGames(scores, np.array([10, 20, 30]), [])
    found = summarise(played, "Breakout")
    from scipy import stats

    interval = stats.ttest_1samp(scores, 0).confidence_interval()
    assert found["mean"] == 6
    assert found["interval"] == pytest.approx(interval)
    assert found["human_normalised"] == pytest.approx((6 - 1.7) / (30.5 - 1.7))
    assert "human_normalised" not in summarise(played, "Adventure")
    single = evaluate.PlayedGames(scores[:1], np.array([10]), [])
    assert summarise(single, "Breakout")["interval"] is None


def test_from_the_command_line_with_the_best_game_to_see(trained, script, in_process, tmp_path):
    algorithm = "pqn"
    flags = ("--games", 2, "--gif", "best.gif", "--epsilon", 0.1, "--device", "cpu")
    done = script("lab.evaluate", trained[algorithm], *flags)
    record = json.loads((trained[algorithm] / "evaluation.json").read_text())
    assert f"mean score {record['mean']:.1f} (95 %: " in done.stdout
    assert "playing 2 games, greedy, epsilon 0.1" in done.stdout
    assert len(record["scores"]) == 2
    assert record["flags"]["epsilon"] == 0.1
    with Image.open(tmp_path / "best.gif") as image:
        assert 1 < image.n_frames <= evaluate.MOST_FRAMES
        assert image.size[0] > image.size[1] > 2 * 210
        # The screen has the colours of the game: a red wall, and walls in grey.
        colors = {color for _, color in image.convert("RGB").getcolors(2**24)}
        assert any(red > 150 > 2 * blue for red, _, blue in colors)
    in_process("lab.evaluate", trained[algorithm], "--games", 2, "--epsilon", 0.1)
    again = json.loads((trained[algorithm] / "evaluation.json").read_text())
    assert again["scores"] == record["scores"]


def test_dead_units_are_crossed_out_and_live_ones_are_not():
    z = np.zeros((3, 40), np.float32)
    z[:, 0], z[0, 1], z[1, 1] = 1.0, 1.0, -1.0
    dead = np.zeros(40, bool)
    dead[0] = True
    panels = evaluate.draw_units(z, dead)
    assert panels.shape == (3, 16, 256, 3)
    cell = evaluate.CELL
    assert (panels[0, 0, 0] == [200, 40, 30]).all()  # strongest positive: red
    assert (panels[1, 0, cell] == [30, 70, 200]).all()  # strongest negative: blue
    assert (panels[2, 0, cell] == 255).all()  # 0: white
    assert (panels[0, 3, 3] == 90).all()  # crossed out
    assert (panels[0, 3, cell + 3] == [200, 40, 30]).all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        ([], "no run: name its folder, such as runs/NAME"),
        (["nowhere", "--games", "0"], "--games must be between 1 and 1024, not 0"),
        (["nowhere", "--epsilon", "2"], r"--epsilon must be between 0 and 1, not 2"),
        (["nowhere", "--gif", "best.mp4"], "--gif best.mp4 must end in .gif"),
        (["nowhere", "--gif", "no/best.gif"], "there is no folder no"),
        (["nowhere", "--device", "tpu"], "unknown --device 'tpu'"),
    ],
)
def test_bad_input_is_refused(flags, message, refused):
    refused(evaluate, flags, message)


def test_a_folder_in_the_way_of_the_gif_is_told_before_a_game_is_played(refused, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gif") / "best.gif"
    folder.mkdir()
    flags = ["nowhere", "--gif", str(folder)]
    refused(evaluate, flags, r"best\.gif is a folder and in the way")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda network: network.pop("head.bias"), "network lacks head.bias"),
        (lambda network: network.update({"head.bias": [1.0]}), r"head.bias must be float32 \(4,\)"),
        (lambda network: network["head.bias"].fill_(math.nan), "network.head.bias has NaN or inf"),
    ],
)
def test_a_network_that_no_run_has_written_is_refused(change, message, trained, tmp_path):
    folder = shutil.copytree(trained["dqn"], tmp_path / "run")
    nest = read_state(folder / "checkpoint.pt")
    change(nest["state"]["network"])
    content = io.BytesIO()
    torch.save(nest, content)
    footer = bytes(Footer(FORMAT, 160, zlib.crc32(content.getvalue())))
    (folder / "checkpoint.pt").write_bytes(content.getvalue() + footer)
    with pytest.raises(UsageError, match=message):
        load(folder, torch.device("cpu"))


def test_drawing_from_a_policy_is_for_ppo(trained, refused):
    refused(
        evaluate, [str(trained["dqn"]), "--sample"], "--sample is for PPO; this is a run of dqn"
    )


def test_a_policy_that_is_drawn_from_is_not_called_greedy(trained, script):
    done = script("lab.evaluate", trained["ppo"], "--games", 1, "--sample")
    assert "playing 1 game, actions drawn from the policy\n" in done.stdout


def test_the_picture_of_a_step_says_score_step_and_action(trained):
    """Scores are raw: in the last picture what the game had before its last step."""
    player = load(trained["dqn"], torch.device("cpu"))
    envs = AtariEnvs("Breakout", 1, 7)
    envs.reset()
    rng, actions, scores, infos = np.random.default_rng(0), [], [0.0], {}
    while "episode" not in infos:
        actions.append(int(rng.integers(4)))
        _, rewards, *_, infos = envs.step(np.array(actions[-1:]))
        scores.append(scores[-1] + rewards[0])
    envs.close()
    assert infos["episode"]["r"][0] == pytest.approx(scores[-1])  # of the lowest wall: 1 each
    moments, compose = [], evaluate.compose

    def noting(all_moments, panel, t, dead):
        moments.append(all_moments[t])
        return compose(all_moments, panel, t, dead)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "compose", noting)
        pictures = list(evaluate.draw_game(player, np.array(actions), 7, torch.device("cpu")))
    assert len(pictures) == len(actions)
    assert [moment.step for moment in moments] == list(range(len(actions)))
    assert [moment.score for moment in moments] == scores[:-1]
    assert {moment.action for moment in moments} == {"NOOP", "FIRE", "RIGHT", "LEFT"}
