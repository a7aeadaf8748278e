"""MIND and EB-NeRD."""

from __future__ import annotations

import json

from raw_files.files import RawFile, Row, schema


def _mind_pages(first: int, day: int, month: int = 11) -> list[Row]:
    """ImpressionID, UserID, time, history, impressions."""
    rows = []
    for k in range(12):
        user = k % 4
        history = " ".join(f"N{n}" for n in range(user * 3))  # the first user has none
        shown = " ".join(f"N{(k + n) % 20}-{int(n == k % 3)}" for n in range(5))
        hour = f"{k % 12 + 1}:36:57 {'AM' if k % 2 else 'PM'}"
        rows.append((first + k, f"U{user}", f"{month}/{day + k // 4}/2019 {hour}", history, shown))
    return rows


def mind() -> list[RawFile]:
    url = "https://assets.msn.com/labs/mind/AAGH0ET.html"
    entity = json.dumps([{"Label": "Adieu", "Type": "P", "WikidataId": "Q7", "Confidence": 1.0}])
    news = [
        (
            f"N{n}",
            "lifestyle",
            "royals",
            f'The "{n}" brands',
            None if n % 5 else "Shop",
            url,
            *found,
        )
        for n in range(22)
        for found in [(entity if n % 3 else "[]", "[]")]
    ]
    vectors = [(f"Q{n}", *[f"{(n + i) / 100:.6f}" for i in range(100)]) for n in range(5, 9)]
    pages = [_mind_pages(1, 12), _mind_pages(1, 15)]
    return [
        *(
            RawFile(
                f"MINDsmall_{part}/behaviors.tsv",
                pages[k],
                "\t",
                time=2,
                early="11/13/1969 8:36:57 AM",
                text=3,
            )
            for k, part in enumerate(("train", "dev"))
        ),
        RawFile("MINDsmall_train/news.tsv", news[:18], "\t", unique=True, text=3),
        RawFile("MINDsmall_dev/news.tsv", news, "\t"),
        *(
            RawFile(
                f"MINDsmall_{part}/entity_embedding.vec",
                vectors,
                "\t",
                required=False,
                vector=1,
                tail="\t",
            )
            for part in ("train", "dev")
        ),
    ]


def ebnerd() -> list[RawFile]:
    behaviours = schema("""
        impression_id:uint32 article_id:int32 impression_time:timestamp read_time:float
        scroll_percentage:float device_type:int8 article_ids_inview:[int32]
        article_ids_clicked:[int32] user_id:uint32 is_sso_user:bool gender:int8 postcode:int8
        age:int8 is_subscriber:bool session_id:uint32 next_read_time:float
        next_scroll_percentage:float""")
    history = schema("""
        user_id:uint32 impression_time_fixed:[timestamp] scroll_percentage_fixed:[float]
        article_id_fixed:[int32] read_time_fixed:[float]""")
    articles = schema("""
        article_id:int32 title:string subtitle:string last_modified_time:timestamp premium:bool
        body:string published_time:timestamp image_ids:[int64] article_type:string url:string
        ner_clusters:[string] entity_groups:[string] topics:[string] category:int16
        subcategory:[int16] category_str:string total_inviews:int32 total_pageviews:int32
        total_read_time:float sentiment_score:float sentiment_label:string""")
    vectors = schema("article_id:int32 document_vector:[float]")
    second = 1_000_000
    train, validation = 1_684_393_200, 1_684_998_000  # 18 and 25 May 2023, 07:00

    def pages(first: int, start: int) -> list[Row]:
        return [
            (*of_page, *shown, k % 3, True, None, 4, 60, False, 70 + k, 8.0, 30.0)
            for k in range(14)
            for of_page in [(first + k, None, (start + 40_000 * k) * second, 17.0, None, 2)]
            for shown in [([k % 15 + n for n in range(5)], [k % 15 + k % 5])]
        ]

    def reads(end: int) -> list[Row]:
        return [
            (
                user,
                [(end - 90_000 * k) * second for k in range(12, 0, -1)],
                [100.0] * 12,
                [(user + end // 90_000 - k) % 20 for k in range(12, 0, -1)],
                [13.0] * 12,
            )
            for user in range(3)
        ]

    about = ("Brødtekst", 1, None, "article_default", "u", ["A"], ["PER"])
    about += (["Sport", "Fodbold"], 118, [133])
    papers = [
        (n, f"Overskrift {n}", "ø", 1, n % 2 == 0, *about, f"krimi{n % 3}", 1, 1, 1.0, 0.9, "Neg")
        for n in range(22)
    ]
    return [
        RawFile(
            "train/behaviors.parquet",
            pages(100, train),
            schema=behaviours,
            time=2,
            early=-5 * second,
        ),
        RawFile("train/history.parquet", reads(train), schema=history),
        RawFile(
            "validation/behaviors.parquet",
            pages(100, validation),
            schema=behaviours,
            time=2,
            early=-5 * second,
        ),
        RawFile("validation/history.parquet", reads(validation), schema=history),
        RawFile("articles.parquet", papers, schema=articles, unique=True, text=1),
        RawFile(
            "Ekstra_Bladet_word2vec/document_vector.parquet",
            [(n, [n / 10, 1.0, -0.5]) for n in range(20)],
            schema=vectors,
            required=False,
            unique=True,
            vector=1,
        ),
    ]
