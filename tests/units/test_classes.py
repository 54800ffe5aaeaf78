"""What labels are called, in a run's folder and in the model card."""

import pytest

from stepdistill.export.model_card import classes as of_card
from stepdistill.runs.classes import keep, listed
from stepdistill.schema import ConfigError


def test_names_are_kept_and_compared(tmp_path):
    file = tmp_path / "classes.json"
    keep(file, ())
    assert not file.exists()
    keep(file, ("Katze", "Vögel"))
    keep(file, ("Katze", "Vögel"))
    for names, words in {
        ("Katze", "Hund"): "label 1 was 'Vögel' and is 'Hund'",
        ("Katze",): "label 1 was 'Vögel' and is nothing",
        (): "label 0 was 'Katze' and is nothing",
        ("Katze", "Vögel", "Hund"): "label 2 was nothing and is 'Hund'",
    }.items():
        with pytest.raises(ConfigError, match=words):
            keep(file, names)


@pytest.mark.parametrize("text", ["", "{", "5", "[" * 100_000])
def test_a_damaged_file_is_named(text, tmp_path):
    file = tmp_path / "classes.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match="classes.json: damaged"):
        keep(file, ("a",))


def test_many_names_are_one_short_line():
    names = tuple(f"n{k}" for k in range(1000))
    assert listed(names[:3]) == "0 n0, 1 n1, 2 n2"
    assert listed(names).endswith("17 n17, …, 999 n999")


def test_the_card_says_what_each_label_is():
    assert of_card(()) == []
    heading, table = of_card(("a|b", "<img src=x>"))
    assert heading == "## Classes\n"
    assert table.splitlines()[2:] == ["| 0 | a&#124;b |", "| 1 | &lt;img src=x&gt; |"]
