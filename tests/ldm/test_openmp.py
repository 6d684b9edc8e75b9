"""OpenMP's waiting threads: the command line shortens their spin before torch is imported, unless the user chose."""

import os
import subprocess
import sys

import pytest

CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.mark.parametrize(
    ("chosen", "count"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, None)],
    ids=["unset", *CHOICES],
)
def test_the_spin_is_short_unless_the_user_chose(chosen, count, ldm, monkeypatch):
    for name in CHOICES:
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    assert ldm("--version").code == 0
    assert os.environ.get("GOMP_SPINCOUNT") == count
    assert os.environ.get("OMP_WAIT_POLICY") == chosen.get("OMP_WAIT_POLICY")


def test_openmp_reads_it():
    code = (
        "import sys; from ldm.cli.main import main; main(['--version'])\n"
        "assert 'torch' not in sys.modules; import torch"
    )
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES}
    environment["OMP_DISPLAY_ENV"] = "VERBOSE"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this torch has another OpenMP than GNU's, which does not read GOMP_SPINCOUNT")
    assert "GOMP_SPINCOUNT = '1000'" in done.stderr
