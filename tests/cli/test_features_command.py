"""`onerec features`: an interval is filled, an event is pushed, and mistakes are one line."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from cli.main import main
from feature_repo.store import apply
from tests.feature_repo.conftest import DAYS, end_of, write_days


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("features") / "var"
    write_days(root / "shop" / "features", np.random.default_rng(4))
    apply(features=root / "shop" / "features", feature_store=root / "shop" / "feature_store")
    return str(root)


def test_materialize_then_push(root, capsys):
    where = ["--root", root, "--source", "shop"]
    start, end = (end_of(DAYS[0]) - timedelta(days=1)).isoformat(), end_of(DAYS[5]).isoformat()
    assert main(["features", "materialize", "--start", start, "--end", end, *where]) == 0
    assert f"online until {end}" in capsys.readouterr().out
    push = ["features", "push", "--user", "1", "--item", "777", "--label", "is_click", *where]
    assert main(push) == 0
    assert "777]" in capsys.readouterr().out
    assert main([*push, "--item", "778", "--time", start]) == 0
    said = capsys.readouterr()
    assert "778" not in said.out and "older than what the tables cover" in said.err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["push", "--user", "1", "--item", "2", "--label", "is_loved"], 1, "is_loved is no label"),
        (["push", "--user", "1", "--item", "2", "--day", "2022-01-01"], 1, "holds no items"),
        (["materialize", "--start", "2022-05-05T00:00", "--end", "2022-05-06T00:00+00:00"], 2, "has no time zone"),
        (["materialize", "--start", "May", "--end", "2022-05-06T00:00+00:00"], 2, "'May' is no instant"),
    ],
)
def test_mistakes(root, capsys, arguments, status, said):
    command = ["features", *arguments, "--root", root, "--source", "shop"]
    if status == 2:
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == 2
    else:
        assert main(command) == status
    assert said in capsys.readouterr().err
