"""The kit: the adapters here pass it, one that breaks a promise does not, what the scaffold writes passes as it is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from tiny_kuairand import KuaiRandFiles

from datasets.adapters.contract_parquet import ContractParquet
from datasets.adapters.kit import check_adapter
from datasets.adapters.kuairand import KuaiRand
from datasets.adapters.scaffold import scaffold
from datasets.errors import DataError
from datasets.simulator import simulate

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(files: KuaiRandFiles, tmp_path: Path) -> Path:
    return files.write(tmp_path / "source")


def test_kuairand_passes(source: Path, tmp_path: Path) -> None:
    check_adapter(KuaiRand, source=source, scratch=tmp_path)


def test_contract_parquet_passes_on_the_simulator(tmp_path: Path) -> None:
    simulate(
        tmp_path / "source",
        days=2,
        end=date(2025, 1, 2),
        users=20,
        items=40,
        impressions=200,
        progress=lambda text: None,
    )
    check_adapter(ContractParquet, source=tmp_path / "source", scratch=tmp_path)


class OpensFiles(KuaiRand):
    @classmethod
    def matches(cls, source: Path) -> bool:
        return super().matches(source) and all(f.stat().st_size for f in source.glob("log_*.csv"))


class LosesADay(KuaiRand):
    def days(self, con):
        return super().days(con)[:-1]

    def impressions(self, con, days):
        return super().impressions(con, [*days, date(2022, 4, 27)])


class ForgetsAColumn(KuaiRand):
    def impressions(self, con, days):
        return f"SELECT * EXCLUDE (surface) FROM ({super().impressions(con, days)})"


class NarrowIds(KuaiRand):
    def impressions(self, con, days):
        return f"SELECT * REPLACE (CAST(user_id AS INTEGER) AS user_id) FROM ({super().impressions(con, days)})"


class NumbersAsFeatures(KuaiRand):
    def users(self, con, day):
        return f"SELECT *, 1.5 AS height FROM ({super().users(con, day)})"


class CutAway(KuaiRand):
    """Takes a damaged file for a shorter one."""

    def scan(self, files, columns, required):
        casts = ", ".join(f"TRY_CAST({name} AS {kind}) AS {name}" for name, kind in columns.items())
        return f"SELECT {casts} FROM read_csv('{files[0]}', ignore_errors=true, null_padding=true, all_varchar=true)"


BROKEN = {
    OpensFiles: "opens no file",
    LosesADay: "`impressions` of all days has rows of",
    ForgetsAColumn: r"contract's columns; differing: \{'surface'\}",
    NarrowIds: "user_id INTEGER, not BIGINT",
    NumbersAsFeatures: "not so height DECIMAL",
    CutAway: r"a cut log_standard_4_25_to_4_27_tiny\.csv is a DataError",
}


@pytest.mark.parametrize("adapter", BROKEN, ids=lambda adapter: adapter.__name__)
def test_a_broken_promise_is_named(adapter: type[KuaiRand], source: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("datasets.adapters.ADAPTERS", (ContractParquet,))
    with pytest.raises(AssertionError, match=BROKEN[adapter]):
        check_adapter(adapter, source=source, scratch=tmp_path)


def test_a_layout_that_another_adapter_claims_is_refused(source: Path, tmp_path: Path) -> None:
    class Twin(KuaiRand):
        name = "twin"

    with pytest.raises(AssertionError, match="claimed by kuairand as well"):
        check_adapter(Twin, source=source, scratch=tmp_path)


def test_what_the_scaffold_writes_passes_lint_and_its_own_test(tmp_path: Path) -> None:
    """Written into a copy of the adapters, so that the repository stays as it is."""
    shutil.copytree(REPOSITORY / "datasets", tmp_path / "datasets", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    adapter, test = scaffold("my_shop", tmp_path)
    assert adapter.relative_to(tmp_path) == Path("datasets/adapters/my_shop.py")
    written = [adapter, test, *scaffold("a", tmp_path), *scaffold("a_name_of_twenty_let", tmp_path)]
    ruff = Path(sys.executable).with_name("ruff")
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([ruff, *command, *written], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    env = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", test], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith(".."), done.stdout


@pytest.mark.parametrize("name", ["Shop", "2shops", "my-shop", ""])
def test_scaffold_refuses_a_name_that_is_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no name for an adapter"):
        scaffold(name, tmp_path)


def test_scaffold_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "datasets" / "adapters").mkdir(parents=True)
    scaffold("shop", tmp_path)
    with pytest.raises(DataError, match=r"shop\.py exists"):
        scaffold("shop", tmp_path)
    with pytest.raises(DataError, match="there is an adapter 'kuairand'"):
        scaffold("kuairand", tmp_path)
    with pytest.raises(DataError, match="holds no datasets/adapters"):
        scaffold("other", tmp_path / "elsewhere")
