"""The comparison of streams, and theory against simulation, through their own command lines."""

import csv

import pytest


def test_streams(recipe, capsys, tmp_path):
    recipe("hopfield_streams", "--methods=[spectral_entropy,agreement]", "--seeds=1",
        '--only=["K = 4","a client with NaN"]', "--output=out")  # fmt: skip
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["scenario"], row["method"], row["seed"]) for row in rows] == [
        (name, method, "100")
        for name in ("K = 4", "a client with NaN")
        for method in ("spectral_entropy", "agreement")
    ]
    ours = [row for row in rows if row["method"] == "spectral_entropy"]
    assert all(row["found"] == row["truth"] and float(row["m_min"]) > 0.99 for row in ours)
    assert ours[1]["attacker_w"] == "0.0"
    table = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert len(table) == 2 + 4
    assert {line.count("|") for line in table} == {10}
    assert table[2] in capsys.readouterr().out


def test_theory(recipe, capsys, tmp_path):
    recipe("hopfield_theory", "--examples=[200]", "--batches=3", "--output=out")
    with (tmp_path / "out" / "theory.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    for row in rows:
        if float(row["overlap_theory"]) > 0.5:
            assert float(row["eigenvalue"]) == pytest.approx(float(row["eigenvalue_theory"]), rel=0.05)
            assert float(row["overlap"]) == pytest.approx(float(row["overlap_theory"]), rel=0.1)
    assert (tmp_path / "out" / "theory.png").stat().st_size > 10_000
    assert "eigenvalue where theory says" in capsys.readouterr().out
