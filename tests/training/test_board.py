"""Event files: nothing lost, nothing doubled, as TensorBoard's own reader sees it."""

import os
import shutil

import numpy as np
import pytest
from tensorboard import context
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import backend_context

from lab.common.events import read_scalars
from lab.training import board as room
from lab.training.board import Board, start_board


def points(folder, tag="x"):
    log = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    log.Reload()
    return [(event.step, event.value) for event in log.Scalars(tag)]


def write_past_a_checkpoint(folder):
    """Write a point, sync as a checkpoint does, write another; return the sizes of the sync."""
    board = Board(folder)
    board.scalar("x", 1.0, 10)
    sizes = board.sync()
    board.scalar("x", 2.0, 20)
    board.flush()
    return sizes


def test_hparams_has_the_columns_and_measures_of_all_runs(tmp_path):
    """As TensorBoard's plugin finds them: what only one of two algorithms has is there, too."""
    named = {"game": "Pong", "variant": "tanh-hr"}
    flags = {"apply_to": "last", "seed": 1}
    own = {"dqn": {"double_dqn": True}, "pqn": {"q_lambda": 0.65, "layer_norm": False}}
    for algorithm, extra in own.items():
        (tmp_path / algorithm).mkdir()
        config = named | {"algorithm": algorithm, "flags": flags | extra}
        board = start_board(tmp_path / algorithm, config, ())
        board.scalar(f"losses/of_{algorithm}", 1.0, 10)
        board.flush()
    runs = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    runs.Reload()
    provider = data_provider.MultiplexerDataProvider(runs, str(tmp_path))
    plugin = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    request = context.RequestContext()
    found = plugin.experiment_from_metadata(
        request, "", True, plugin.hparams_metadata(request, ""), []
    )
    columns = {column.name: column for column in found.hparam_infos}
    assert {"double_dqn", "q_lambda", "layer_norm", "seed", "game", "variant"} <= columns.keys()
    assert list(columns["double_dqn"].domain_discrete) == ["on"]
    assert list(columns["layer_norm"].domain_discrete) == ["off"]
    measured = {metric.name.tag for metric in found.metric_infos}
    assert measured >= {"losses/of_dqn", "losses/of_pqn"}


def test_what_came_after_the_checkpoint_is_written_anew_once(tmp_path):
    sizes = write_past_a_checkpoint(tmp_path)
    lost = Board(tmp_path, sizes, purge_step=11)  # a session that reached no checkpoint
    lost.scalar("x", 2.0, 20)
    lost.flush()
    again = Board(tmp_path, sizes, purge_step=11)
    again.scalar("x", 2.5, 20)
    again.scalar("x", 3.0, 30)
    again.sync()
    assert points(tmp_path) == [(10, 1.0), (20, 2.5), (30, 3.0)]


def test_a_reader_that_has_seen_the_lost_points_forgets_them(tmp_path):
    sizes = write_past_a_checkpoint(tmp_path)
    reader = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    reader.Reload()
    assert len(reader.Scalars("x")) == 2
    again = Board(tmp_path, sizes, purge_step=11)
    again.scalar("x", 2.5, 20)
    again.flush()
    reader.Reload()
    assert [(event.step, event.value) for event in reader.Scalars("x")] == [(10, 1.0), (20, 2.5)]


def test_while_nothing_can_be_written_points_are_kept(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    board = Board(folder)
    board.scalar("x", 1.0, 1)
    board.flush()
    folder.rename(tmp_path / "away")
    board.scalar("x", 2.0, 2)
    assert not board.flush()
    assert board.problem.strerror == "No such file or directory"
    with pytest.raises(OSError, match="No such file"):
        board.sync()
    board.scalar("x", 3.0, 3)
    (tmp_path / "away").rename(folder)
    assert board.flush()
    assert board.problem is None
    assert points(folder) == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_half_a_record_is_cut_off_before_it_is_written_again(tmp_path):
    board = Board(tmp_path)
    board.scalar("x", 1.0, 1)
    board.flush()
    with board.path.open("ab") as file:
        file.write(b"half a rec")
    board.scalar("x", 2.0, 2)
    board.flush()
    assert points(tmp_path) == [(1, 1.0), (2, 2.0)]


def test_points_are_on_the_disk_once_it_is_time_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "FLUSH_EVERY", 0.0)  # seconds: always
    board = Board(tmp_path)
    monkeypatch.setattr(room, "FLUSH_EVERY", 1e9)  # after the next point: never
    board.scalar("x", 1.0, 1)
    assert points(tmp_path) == [(1, 1.0)]
    board.scalar("x", 2.0, 2)
    assert points(tmp_path) == [(1, 1.0)]
    board.flush()
    assert points(tmp_path) == [(1, 1.0), (2, 2.0)]


def test_pictures_texts_and_layout_are_read_back(tmp_path, events):
    config = {"flags": {"seed": 1, "apply_to": "last"}, "game": "Pong"}
    board = start_board(tmp_path, config | {"algorithm": "dqn", "variant": "tanh"}, ("td_loss",))
    pixels = np.zeros((3, 5, 3), np.uint8)
    board.image("picture", pixels, 4)
    board.flush()
    log = events(tmp_path)
    image = log.Images("picture")[0]
    assert (image.step, image.width, image.height) == (4, 5, 3)
    tags = log.Tags()["tensors"]
    assert {"hyperparameters/text_summary", "custom_scalars__config__"} <= set(tags)
    text = log.Tensors("hyperparameters/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.startswith("|param|value|\n|-|-|\n|seed|1|\n")
    assert "\n|game|Pong|" in text
    layout = log.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0].decode("latin1")
    assert "losses/td_loss" in layout
    assert "conv_" not in layout


def test_only_files_that_the_checkpoint_names_are_cut_back_and_none_goes(tmp_path):
    """Not what lies beside them, nor what links lead to, nor a backup that shares its content."""
    folder, backup = tmp_path / "run", tmp_path / "backup"
    folder.mkdir()
    backup.mkdir()
    sizes = write_past_a_checkpoint(folder)
    (name,) = sizes
    os.link(folder / name, backup / name)
    for other in (
        "events.out.tfevents.bak",
        f"{name}.bak",
        name.replace("tfevents.1", "tfevents.2"),
    ):
        shutil.copy(folder / name, folder / other)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    Board(folder, sizes, purge_step=11)
    assert {path: path.read_bytes() for path in before} == before
    (backup / name).unlink()
    Board(folder, sizes, purge_step=11)
    assert (folder / name).stat().st_size == sizes[name]

    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "precious")
    (tmp_path / "precious").write_bytes(bytes(10_000))
    Board(folder, sizes, purge_step=11)
    assert (tmp_path / "precious").stat().st_size == 10_000


def test_points_of_a_session_without_a_checkpoint_are_forgotten_and_their_file_stays(tmp_path):
    sizes = write_past_a_checkpoint(tmp_path)
    lost = Board(tmp_path, sizes, purge_step=11)
    lost.scalar("x", 2.0, 20)
    lost.flush()
    again = Board(tmp_path, sizes, purge_step=11)
    again.scalar("x", 3.0, 20)
    named = again.sync()
    assert points(tmp_path) == [(10, 1.0), (20, 3.0)]
    assert read_scalars(tmp_path, [10, 10])[0]["x"].values.tolist() == [1.0, 3.0]
    assert lost.path.exists()
    assert set(named) == {*sizes, again.path.name}


def test_a_file_that_is_removed_while_it_is_written_is_told(tmp_path):
    board = Board(tmp_path)
    board.scalar("x", 1.0, 10)
    board.flush()
    board.path.unlink()
    board.scalar("x", 2.0, 20)
    board.sync()
    assert (
        board.removed == f"{board.path.name} was removed: its points up to agent step 10 are gone"
    )
    assert points(tmp_path) == [(20, 2.0)]
    curves, losses = read_scalars(tmp_path)
    assert curves["x"].values.tolist() == [2.0]
    assert losses == ["the event file of the run's beginning is gone"]


def test_a_pipe_or_a_link_in_the_place_of_the_file_is_a_problem_that_is_told(tmp_path):
    (tmp_path / "elsewhere").write_text("mine")
    for put in (os.mkfifo, lambda path: path.symlink_to(tmp_path / "elsewhere")):
        board = Board(tmp_path)
        board.path.unlink()
        put(board.path)
        board.scalar("x", 1.0, 10)
        assert not board.flush()
        assert board.problem is not None
    assert (tmp_path / "elsewhere").read_text() == "mine"
