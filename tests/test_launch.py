"""The scripts that start everything."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "launch"


@pytest.mark.parametrize("name", [path.name for path in LAUNCH.glob("*.sh")])
def test_the_scripts_can_be_read(name):
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)


@pytest.mark.parametrize("name", ["demo.sh", "test.sh"])
def test_without_a_python_it_says_so_in_one_line(tmp_path, name):
    shutil.copytree(LAUNCH, tmp_path / "launch")
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "cat", "cksum"):
        (tools / tool).symlink_to(shutil.which(tool))
    done = subprocess.run(
        ["bash", "launch/" + name],
        cwd=tmp_path,
        env={**os.environ, "PATH": str(tools), "PYTHON": "", "VENV": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"launch/{name}: error: no Python 3.11 or later here; "
        "install one, or name it: PYTHON=/path/to/python\n"
    )
