"""What make does with the status of what it runs."""

import subprocess

import pytest
from conftest import ENV, ROOT


@pytest.mark.parametrize("target", ["train", "sweep"])
@pytest.mark.parametrize(("status", "expected"), [(0, 0), (75, 0), (1, 2), (2, 2)])
def test_a_clean_stop_is_no_error_of_makes(target, status, expected, tmp_path):
    """A run that was asked to stop, and can go on, ends with 75; make says 2 of any error."""
    stub = tmp_path / "python"
    stub.write_text(f"#!/bin/sh\necho ran $1 $2\nexit {status}\n")
    stub.chmod(0o755)
    command = ["make", "-o", ".venv/.installed", target, f"RUN={stub}"]
    # As at a prompt, also where make runs the tests.
    env = {name: value for name, value in ENV.items() if "MAKE" not in name and name != "MFLAGS"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == expected
    assert done.stdout.startswith("ran ")
    assert ("Error" in done.stderr) == (expected != 0)
