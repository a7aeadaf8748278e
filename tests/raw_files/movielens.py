"""MovieLens-100K, -1M, and what shares the format of latest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raw_files.files import RawFile, Row

START = 964_982_703
TITLES = ["Toy Story (1995)", "American President, The (1995)", 'Léon ("Le Pro") (1994)', "No Year"]


def _ratings(scale: Callable[[int], Any] = int) -> list[Row]:
    """user, item, rating, time: 4 users, 24 ratings each, most of them good."""
    return [
        (user, 1 + (7 * user + 5 * k) % 40, scale(3 if k % 4 == 1 else 5), START + 1000 * user + k)
        for user in (1, 2, 3, 30)
        for k in range(24)
    ]


def _title(item: int) -> str:
    return TITLES[item % 4]


def movielens_100k() -> list[RawFile]:
    flags = [tuple(int(g == item % 18 + 1 or g == 8) for g in range(19)) for item in range(1, 41)]
    films = [
        (item, _title(item), "01-Jan-1995", "", f"http://us.imdb.com/M/{item}", *flags[item - 1])
        for item in range(1, 41)
    ]
    users = [(user, 24 + user, "M", "technician", "85711") for user in (1, 2, 3, 30)]
    return [
        RawFile("u.data", _ratings(), "\t", time=3, early=-5),
        RawFile("u.item", films, "|", encoding="latin-1", unique=True),
        RawFile("u.user", users, "|", unique=True, text=3),
    ]


def movielens_1m() -> list[RawFile]:
    films = [(item, _title(item), "Comedy|Drama") for item in range(1, 41)]
    users = [(user, "F", 25, 10 + user % 3, "48067") for user in (1, 2, 3, 30)]
    extras = [
        (i, _title(i), 1995, "PG", "1 Jan", "Comedy", "John Lasseter", "x", "y, z", "A plot.", "p")
        for i in range(1, 40)
    ]
    return [
        RawFile("ratings.dat", _ratings(), "::", encoding="latin-1"),
        RawFile("movies.dat", films, "::", encoding="latin-1", unique=True),
        RawFile("users.dat", users, "::", encoding="latin-1", unique=True),
        RawFile("movies_extrainfos.dat", extras, "::", required=False, unique=True, text=9),
    ]


def movielens_latest() -> list[RawFile]:
    films = [(item, _title(item), "Comedy|Drama") for item in range(1, 40)]
    films.append((40, "Nobody Knows", "(no genres listed)"))
    tags = [(1, 2, "pixar", START + 1), (2, 2, "Will Ferrell, again", START), (2, 3, "late", 2**31)]
    films_head, ratings_head = ("movieId", "title", "genres"), ("userId", "movieId", "rating")
    return [
        RawFile(
            "ratings.csv",
            _ratings(float),
            header=(*ratings_head, "timestamp"),
            time=3,
            early=-964982703,
        ),
        RawFile("movies.csv", films, header=films_head, quoted=True, unique=True, text=1),
        RawFile(
            "tags.csv",
            tags,
            header=("userId", "movieId", "tag", "timestamp"),
            quoted=True,
            required=False,
            text=2,
        ),
    ]
