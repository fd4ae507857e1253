"""Specs as titles of rows: short, and never the same for two."""

from __future__ import annotations

import pytest

from paravirt_mm.options import PluginSpec
from paravirt_mm.report.tables import label, labels


@pytest.mark.parametrize(
    ("spec", "title"),
    [
        ("incremental:kernel=6.1", "incremental 6.1"),
        ("linux:image=vmlinuz,movable_node=yes", "linux vmlinuz movable_node=yes"),
        ("linux:image=/boot/vmlinuz-6.1.0-50-amd64", "linux boot/vmlinuz-6.1.0-50-amd64"),
        ("linux:image=/a/b/linux-image/", "linux b/linux-image"),
        ("linux:image=boot/vmlinuz", "linux boot/vmlinuz"),
        ("linux:image=/vmlinuz", "linux /vmlinuz"),
    ],
)
def test_a_path_is_cut_to_its_end(spec: str, title: str) -> None:
    assert label(PluginSpec.parse(spec)) == title


def test_paths_are_as_long_as_they_need_to_be() -> None:
    specs = ["linux:image=/x/old/boot/bzImage", "linux:image=/x/new/boot/bzImage", "hpa"]
    assert list(labels(specs).values()) == [
        "linux old/boot/bzImage",
        "linux new/boot/bzImage",
        "hpa",
    ]
    assert labels(specs[:1]) == {specs[0]: "linux bzImage"}
    same = ["linux:image=/x/bzImage", "linux:image=//x//bzImage"]
    assert len(set(labels(same).values())) == 2
