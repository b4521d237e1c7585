"""The commit in a result is that of the code which made it, or none is given."""

import os
import shutil
import subprocess

import pytest
from conftest import ENV

from lab.common import provenance
from lab.common.provenance import run_git


def git(folder, *command):
    own = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
    clean = {name: value for name, value in ENV.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", *own, *command], cwd=folder, env=clean, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def commit(folder, text):
    """Make a repository there, with one file; return its commit."""
    folder.mkdir(exist_ok=True, parents=True)
    git(folder, "init")
    (folder / "file").write_text(text)
    git(folder, "add", "file")
    git(folder, "commit", "-m", text)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def inner(tmp_path, monkeypatch):
    """A folder with the code, inside another repository."""
    commit(tmp_path, "outer")
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "inner")
    (tmp_path / "inner").mkdir()
    return tmp_path / "inner"


def read():
    changes = run_git("status", "--porcelain", "--untracked-files=no")
    return run_git("rev-parse", "HEAD"), changes


@pytest.mark.parametrize("broken", ["none", "empty", "file", "objects"])
def test_an_outer_repository_is_not_that_of_the_code(broken, inner):
    if broken == "empty":
        (inner / ".git").mkdir()
    if broken == "file":
        (inner / ".git").write_text("gitdir: /no/such\n")
    if broken == "objects":
        commit(inner, "inner")
        shutil.rmtree(inner / ".git" / "objects")
    assert read() == (None, None)


@pytest.mark.parametrize("name", ["GIT_DIR", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY"])
def test_what_the_environment_names_is_not_either(name, inner, tmp_path, monkeypatch):
    own = commit(inner, "inner")
    monkeypatch.setenv(name, str(tmp_path / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / ".git" / "index"))
    assert read() == (own, "")
    (inner / "file").write_text("changed")
    assert read() == (own, "M file")


def test_a_worktree_has_its_own_commit(inner, tmp_path, monkeypatch):
    first = commit(inner, "inner")
    git(inner, "worktree", "add", "-b", "other", str(tmp_path / "tree"))
    (inner / "file").write_text("second")
    git(inner, "commit", "-a", "-m", "second")
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "tree")
    assert read() == (first, "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_a_checkout_of_another_user_has_its_commit(inner):
    own = commit(inner, "inner")
    for folder, _, names in os.walk(inner):
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            os.chown(path, 65534, 65534)
    with pytest.raises(subprocess.CalledProcessError):
        git(inner, "rev-parse", "HEAD")  # what git itself says: dubious ownership
    assert read() == (own, "")


def test_without_git_the_commit_is_unknown(inner, monkeypatch):
    commit(inner, "inner")
    monkeypatch.setenv("PATH", "/no/such")
    assert read() == (None, None)
