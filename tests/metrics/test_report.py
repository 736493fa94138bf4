"""The report: its numbers, and a page that is whole, safe and needs nothing from outside."""

from __future__ import annotations

import csv
import json
import math
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from musictune.audio import Clip, write
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.folder import ClipFile, ClipSet, pair
from musictune.metrics.pictures import excerpt
from musictune.metrics.report import headline, write_report
from musictune.metrics.suite import Evaluation, score_sets

EVIL = '<script>alert("x")</script> & <img src=http://evil.example/x.png>'


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action")]
        self.words += [v or "" for k, v in attrs if k in ("alt", "aria-label")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def clip_set(folder: Path, name: str, prompts: list[str], low: float) -> ClipSet:
    folder = folder / name
    folder.mkdir()
    files = []
    for i, prompt in enumerate(prompts):
        path = folder / f"{i:03d}.wav"
        time = torch.arange(12_000) / 8000
        wave = 0.3 * torch.sin(2 * math.pi * (low + 110 * i) * time)[None]
        write(Clip(wave, 8000), path)
        files.append(ClipFile(path, path.name, prompt, prompt, i, "mini"))
    return ClipSet(name, tuple(files))


def measure(embedder: ClapEmbedder, made: ClipSet, reference: ClipSet, against: ClipSet | None):
    return score_sets(
        embedder,
        (f.read() for f in made.files),
        (f.read() for f in reference.files),
        (f.read() for f in against.files) if against else None,
        pair(made.files, against.files) if against else [],
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    embedder = ClapEmbedder.toy()
    made = clip_set(root, "tuned", ["a tune", EVIL, ""], 220)
    against = clip_set(root, "base", ["a tune", EVIL, ""], 900)
    reference = clip_set(root, "mine", ["", ""], 200)
    out = root / "out"
    out.mkdir()
    evaluation = measure(embedder, made, reference, against)
    write_report(out, evaluation, embedder, made, reference, against)
    return out


def test_metrics_json_follows_the_schema(report: Path):
    numbers = json.loads((report / "metrics.json").read_text())
    assert numbers["schema"] == 1
    scores = numbers["scores"]
    for name in ("audio_alignment", "text_alignment", "frechet_distance", "self_similarity"):
        for prefix in ("", "against/"):
            score = scores[prefix + name]
            assert {"value", "low", "high", "n", "better"} <= set(score)
            assert score["better"] in ("higher", "lower")
    assert scores["frechet_distance"]["low"] is None  # three clips in eight dimensions
    assert 0 < scores["difference/audio_alignment"]["p"] <= 1
    assert numbers["not_computed"] == {}
    facts = numbers["made_with"]
    assert {"versions", "base", "adapters", "seeds", "embedder", "checkpoint_hashes"} <= set(facts)
    assert (facts["base"], facts["seeds"], facts["embedder"]) == ("mini", [0, 1, 2], "toy")


def test_clips_csv_has_every_clip_of_both_sets(report: Path):
    with (report / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["set"] for row in rows] == ["tuned"] * 3 + ["base"] * 3
    assert rows[1]["prompt"] == EVIL
    assert (rows[1]["file"], rows[1]["seed"]) == ("001.wav", "1")
    assert -1 <= float(rows[0]["audio_alignment"]) <= 1
    assert rows[2]["text_alignment"] == ""


def test_page_asks_nothing_of_the_network(report: Path):
    text = (report / "report.html").read_text()
    page = Page(text)
    assert page.links
    assert all(link.startswith(("data:", "#")) for link in page.links)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert not {"script", "link", "iframe", "object"} & set(page.tags)


def test_prompts_are_text_and_nothing_else(report: Path):
    page = Page((report / "report.html").read_text())
    assert any(EVIL in words for words in page.words)
    assert page.tags.count("h1") == 1


def test_page_plays_and_shows_both_sets_beside_the_reference(report: Path):
    page = Page((report / "report.html").read_text())
    assert page.tags.count("audio") == 2 + 2 * 2  # references, two pairs
    assert page.tags.count("img") == 2 + 3 * 2
    words = " ".join(page.words)
    for expected in ("tuned", "base", "higher is better", "lower is better", "seed 1", "p ="):
        assert expected in words


def test_same_sets_same_bytes(report: Path, tmp_path: Path):
    embedder = ClapEmbedder.toy()
    made = clip_set(tmp_path, "tuned", ["a", "b", "c"], 220)
    reference = clip_set(tmp_path, "mine", [""], 200)
    pages = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        evaluation = measure(embedder, made, reference, None)
        write_report(tmp_path / name, evaluation, embedder, made, reference)
        pages.append([p.read_bytes() for p in sorted((tmp_path / name).iterdir())])
    assert pages[0] == pages[1]


def test_large_sets_show_one_clip_of_each_prompt_first(tmp_path: Path):
    embedder = ClapEmbedder.toy()
    made = clip_set(tmp_path, "made", ["same"] * 12 + ["rare"], 220)
    reference = clip_set(tmp_path, "mine", [""] * 5, 200)
    write_report(tmp_path, measure(embedder, made, reference, None), embedder, made, reference)
    page = Page((tmp_path / "report.html").read_text())
    assert page.tags.count("audio") == 12 + 3
    assert any("Mel-spectrogram of 012.wav" in words for words in page.words)


def test_headline_claims_only_what_the_interval_allows():
    from musictune.metrics.base import Score

    def claim(low: float, high: float, name: str = "audio_alignment") -> str:
        score = Score((low + high) / 2, low, high, 8, "higher")
        result = Evaluation({f"difference/{name}": score})
        result.p[f"difference/{name}"] = 0.01
        return headline(result, "tuned", "base")[0][0]

    assert claim(0.1, 0.3) == "tuned sounds closer to the reference than base."
    assert claim(-0.3, -0.1) == "tuned sounds less like the reference than base."
    assert claim(-0.1, 0.3) == "tuned sounds about as near the reference as base."
    assert claim(math.nan, math.nan) == "tuned sounds about as near the reference as base."
    same = claim(-0.1, 0.1, "text_alignment")
    assert same == "tuned follows its prompts about as well as base."
    assert headline(Evaluation(), "tuned", "base") == []


def test_excerpt_is_the_beginning_as_mp3_and_png(tmp_path: Path):
    import base64
    import io

    import soundfile
    from PIL import Image

    time = torch.arange(25 * 8000) / 8000
    wave = torch.zeros(2, len(time))
    wave[:, : 2 * 8000] = 0.3 * torch.sin(2 * math.pi * 440 * time[: 2 * 8000])
    write(Clip(wave, 8000), tmp_path / "long.wav")
    part = excerpt(tmp_path / "long.wav", 4.0)
    assert (part.seconds, part.whole) == (4.0, False)
    data, rate = soundfile.read(io.BytesIO(base64.b64decode(part.audio.split(",")[1])))
    assert data.ndim == 1
    assert len(data) / rate == pytest.approx(4.0, abs=0.1)
    picture = Image.open(io.BytesIO(base64.b64decode(part.picture.split(",")[1]))).convert("L")
    pixels = torch.tensor(list(picture.get_flattened_data())).view(picture.height, picture.width)
    sounding, silent = pixels[:, :200].float(), pixels[:, 280:].float()
    assert sounding.max() > 200
    assert silent.max() < 20
    assert sounding.mean(1).argmax() > picture.height / 2  # 440 Hz lies in the lower half
    assert excerpt(tmp_path / "long.wav").seconds == 20.0
