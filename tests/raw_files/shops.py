"""Amazon, Taobao's logs, Steam, Online Retail: what was bought, viewed or clicked."""

from __future__ import annotations

import json

from raw_files.files import RawFile, Row, names

AMAZON_START = 1_600_000_000_000  # September 2020; the official test split begins in July 2022


def _bought() -> list[tuple[int, int, int]]:
    """Customer, product, milliseconds: over two and a half years, for both official splits."""
    return [
        (user, (7 * user + 5 * k) % 30, AMAZON_START + k * 4_000_000_000 + user * 7)
        for user in range(6)
        for k in range(20)
    ]


def amazon_2023() -> list[RawFile]:
    reviews = [
        {
            "rating": float(1 + (user + item) % 5),
            "title": "Five \u2605",
            "text": 'He said "works".<br />Fine.',
            "images": [{"small_image_url": "https://m.media-amazon.com/images/I/x.jpg"}],
            "asin": f"B{item:09d}",
            "parent_asin": f"B{item:09d}",
            "user_id": f"AE{user}GDNFVLCRTMOZ",
            "timestamp": at,
            "helpful_vote": 0,
            "verified_purchase": True,
        }
        for user, item, at in _bought()
    ]
    products = [
        {
            "main_category": "Video Games",
            "title": f"Pad, {item}",
            "average_rating": 4.5,
            "rating_number": 12,
            "features": ["Wired"],
            "description": [] if item % 2 else ["A pad."],
            "price": (None, 19.99, "from 14.99", "\u2014")[item % 4],
            "images": [],
            "videos": [],
            "store": None if item % 5 == 0 else "Nintendo",
            "categories": [] if item % 7 == 0 else ["Video Games", "Accessories", "Pads"],
            "details": {"Color": "Blue", "Best Sellers Rank": {"Video Games": 7}},
            "parent_asin": f"B{item:09d}",
            "bought_together": None,
        }
        for item in range(29)  # one product has no entry
    ]
    return [
        RawFile("Video_Games.jsonl", _lines(reviews), time=0, early=_dated(reviews[2])),
        RawFile("meta_Video_Games.jsonl", _lines(products), unique=True),
    ]


def _lines(records: list[dict[str, object]]) -> list[Row]:
    return [(json.dumps(record),) for record in records]


def _dated(record: dict[str, object]) -> str:
    return json.dumps({**record, "timestamp": -86_400_000})


def amazon_2023_ratings() -> list[RawFile]:
    rows = [(f"AE{u}", f"B{i:09d}", float(1 + i % 5), at) for u, i, at in _bought()]
    header = names("user_id parent_asin rating timestamp")
    return [RawFile("Video_Games.csv", rows, header=header, text=1, time=3, early=-86_400_000)]


def taobao_userbehavior() -> list[RawFile]:
    start = 1_511_539_200
    rows: list[Row] = [
        (user, 100 + (3 * user + k) % 40, 1 + k % 4, kind, start + k * 15_000 + user)
        for user in range(1, 6)
        for k in range(50)
        for kind in (("pv", "cart") if k % 9 == 0 else ("pv",))
    ]
    dirty = [
        (1, 100, 1, "pv", -2134949234),
        (1, 101, 1, "buy", 2122867355),
        (2, 102, 1, "fav", 1511539199),
    ]
    return [RawFile("UserBehavior.csv", [*rows, rows[3], *dirty], text=3)]


def taobao_ads() -> list[RawFile]:
    day = 1_494_000_000
    shown = [
        (user, day + k * 12_000 + user, 1 + (user + k) % 12, "430548_1007", 1 - clk, clk)
        for user in (1, 2, 3, 4)
        for k in range(58)
        for clk in (int(k % 7 == 0),)
    ]
    ads = [
        (ad, 6000 + ad % 4, 80 + ad, ad % 3, "NULL" if ad % 5 == 0 else 900 + ad % 6, 17.5 * ad)
        for ad in range(1, 12)
    ]
    users = [(u, 0, 5, 2, 5, None if u % 2 else 2, 3, 0, "" if u == 3 else 4) for u in (1, 2, 3)]
    behaviors = [
        (
            user,
            day - 90_000 + 3_000 * k,
            ("pv", "cart", "fav", "buy")[k % 4],
            6000 + k % 6,
            900 + k % 7,
        )
        for user in (1, 2, 3, 99)
        for k in range(40)
    ]
    heads = [
        "user time_stamp adgroup_id pid nonclk clk",
        "adgroup_id cate_id campaign_id customer brand price",
        "userid cms_segid cms_group_id final_gender_code age_level pvalue_level shopping_level "
        "occupation",
        "user time_stamp btag cate brand",
    ]
    profile = [*names(heads[2]), "new_user_class_level "]
    return [
        RawFile("raw_sample.csv", shown, header=names(heads[0]), time=1, early=-1),
        RawFile("ad_feature.csv", ads, header=names(heads[1]), unique=True),
        RawFile("user_profile.csv", users, header=profile, unique=True),
        RawFile("behavior_log.csv", behaviors, header=names(heads[3]), time=1, early=-1, text=2),
    ]


def steam() -> list[RawFile]:
    reviews = []
    for user in range(5):
        for k in range(16):
            name = ("u'Chaos Syren'", 'u"Sid\'s"', "u'\\u2122x'", "u'a\\'b\"c'", "u'zed'")[user]
            hours = "" if k % 3 else f"u'hours': {k}.1, "
            game, day = 700 + (5 * user + 3 * k) % 25, f"201{4 + k // 6}-0{1 + k % 6}-1{user}"
            reviews.append(
                f"{{{hours}u'username': {name}, u'product_id': u'{game}', u'page_order': 0, "
                f"u'date': u'{day}', u'text': u\"It's ok, \\n{k}\", u'early_access': {k % 4 == 0}, "
                f"u'page': 1}}"
            )
    games = []
    for game in range(700, 724):
        price = "14.99" if game % 2 else "u'Free To Play'"
        games.append(
            "{u'publisher': u'Making Fun, Inc.', u'genres': [u'Indie', u'RPG'], "
            f"u'app_name': u'Game {game}\\u2122', u'sentiment': u'Mostly Positive', "
            f"u'title': u'Game {game}', u'url': u'http://store.steampowered.com/app/{game}/', "
            "u'release_date': u'2018-01-04', u'tags': [u'Tower Defense', u\"Beat 'em up\"], "
            f"u'specs': [u'Single-player'], u'price': {price}, u'early_access': False, "
            f"u'id': u'{game}', u'developer': u'INGAME'}}"
        )
    games.append("{u'publisher': u'', u'reviews_url': u'http://store', u'title': u'No id'}")
    return [
        RawFile(
            "steam_reviews.json",
            [(line,) for line in reviews],
            text=0,
            time=0,
            early="{u'username': u'a', u'product_id': u'700', u'date': u'1969-05-01'}",
        ),
        RawFile("steam_games.json", [(line,) for line in [*games, games[0]]], text=0),
    ]
