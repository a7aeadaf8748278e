"""Small raw files in exactly the publishers' formats, one entry a shipped definition.

``SMALL[name]()`` gives the files of a definition. Each says where it can be broken, so that
``tests/preparation/test_malformed.py`` breaks every one of them in every way that applies: adding a
definition here is all that it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from raw_files.assistments import assistments_2009
from raw_files.care import care_events
from raw_files.files import RawFile
from raw_files.kuairand import kuairand, kuairand_pure
from raw_files.movielens import movielens_1m, movielens_100k, movielens_latest
from raw_files.news import ebnerd, mind
from raw_files.retail import online_retail
from raw_files.shops import amazon_2023, amazon_2023_ratings, steam, taobao_ads, taobao_userbehavior
from raw_files.statics import statics2011
from raw_files.taobao_mm import taobao_mm
from raw_files.videos import longctr

__all__ = ["SMALL", "RawFile", "write"]

SMALL: dict[str, Callable[[], list[RawFile]]] = {
    "amazon_2023": amazon_2023,
    "amazon_2023_ratings": amazon_2023_ratings,
    "assistments_2009": assistments_2009,
    "care_events": care_events,
    "ebnerd": ebnerd,
    "kuairand_1k": lambda: kuairand("1k"),
    "kuairand_27k": lambda: kuairand("27k", ("_part1", "_part2")),
    "kuairand_pure": kuairand_pure,
    "kuairand_pure_csv": lambda: kuairand("pure"),
    "kuaivideo": lambda: longctr("item_id"),
    "microvideo": lambda: longctr("item_id", "cate_id"),
    "mind": mind,
    "movielens_100k": movielens_100k,
    "movielens_1m": movielens_1m,
    "movielens_latest": movielens_latest,
    "online_retail": online_retail,
    "statics2011": statics2011,
    "steam": steam,
    "taobao_ads": taobao_ads,
    "taobao_mm": taobao_mm,
    "taobao_userbehavior": taobao_userbehavior,
}
"""Shipped definition -> its small raw files."""


def write(name: str, folder: Path) -> Path:
    """Write the small files of a definition; return their folder."""
    for file in SMALL[name]():
        file.write(folder)
    return folder
