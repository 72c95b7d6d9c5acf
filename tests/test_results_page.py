"""The page of results keeps what was not measured anew."""

from __future__ import annotations

from benchmarks.kept import with_kept

HEAD = "\n## Title\n\n`python -m benchmarks.x {}`, 2026-01-0{}, box.\n\nWhat it is.\n\n"
OLD = HEAD.format("--only a,b", 1) + "| network | bits | top1 |\n| --- | --- | --- |\n| a | 4 | .1 |\n| b | 4 | .2 |\n"


def test_rows_of_other_networks_stay_and_their_command_is_told() -> None:
    new = HEAD.format("--only b,c", 2) + (
        "| network | bits | kl |\n| --- | --- | --- |\n| b | 4 | .7 |\n| c | 3 | .8 |\n"
    )
    found = with_kept(new, OLD, ("network", "bits"))
    assert found.endswith(
        "| network | bits | kl | top1 |\n| --- | --- | --- | --- |\n"
        "| b | 4 | .7 |  |\n| c | 3 | .8 |  |\n| a | 4 |  | .1 |\n"
    )  # fmt: skip
    assert "--only b,c`, 2026-01-02, box. Before: `python -m benchmarks.x --only a,b`, 2026-01-01, box.\n" in found
    assert found.count("What it is.") == 1
    assert with_kept(new, found, ("network", "bits")) == found


def test_nothing_is_kept_where_all_was_measured_anew_or_nothing_was_there() -> None:
    new = OLD.replace("2026-01-01", "2026-01-02").replace(".1 |", ".3 |")
    assert with_kept(new, OLD, ("network", "bits")) == new
    assert with_kept(new, "", ("network", "bits")) == new


def test_tables_are_told_apart_by_the_word_over_them() -> None:
    size = "size\n\n| network | b |\n| --- | --- |\n| a | 1 |\n"
    old = HEAD.format("", 1) + size + "\n\ntime\n\n| network |\n| --- |\n| a |\n"
    new = HEAD.format("-t", 2) + "time\n\n| network |\n| --- |\n| b |\n"
    found = with_kept(new, old, ("network",))
    assert found.endswith("time\n\n| network |\n| --- |\n| b |\n| a |\n\n" + size)
