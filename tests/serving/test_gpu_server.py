"""The benchmark of a server on a GPU, without one: MPS is asked for and ended, or the error says what is missing."""

from __future__ import annotations

import os

import pytest

from benchmarks.serving.gpu_server import MPS, main, side_by_side


def test_the_daemon_lives_as_long_as_what_is_inside(tmp_path, monkeypatch) -> None:
    """A program of that name which writes down what it is told; the real one comes with the driver."""
    told = tmp_path / "told"
    program = tmp_path / MPS
    says = 'if [ "$1" = -d ]; then echo "-d $CUDA_MPS_PIPE_DIRECTORY"; else cat; fi'
    program.write_text(f"#!/bin/sh\n{says} >> {told}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"):
        monkeypatch.setenv(name, "")
    with pytest.raises(ZeroDivisionError), side_by_side(True):
        folder = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
        assert told.read_text() == f"-d {folder}\n" and os.path.isdir(folder)
        raise ZeroDivisionError
    assert told.read_text() == f"-d {folder}\nquit\n"


def test_without_the_driver_the_error_names_the_program(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--mps"])
    assert f"{MPS} is not in PATH" in capsys.readouterr().err
    with side_by_side(False):
        pass  # nothing is started
