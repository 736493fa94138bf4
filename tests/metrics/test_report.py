"""The report: its numbers, and a page that is whole, safe and needs nothing from outside."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from musictune.audio import Clip, write
from musictune.errors import InputError
from musictune.metrics import report_page
from musictune.metrics.base import About, Score
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.folder import ClipFile, ClipSet
from musictune.metrics.report import made_with, metrics, write_report
from musictune.metrics.suite import Evaluation

EVIL = '<script>alert("x")</script> & <img src=http://evil.example/x.png>'
NAN = math.nan


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.titles: list[str] = []
        self.policy = ""
        self.unnamed: list[str] = []
        self.inside = ""
        self.feed(text)

    @classmethod
    def of(cls, folder: Path) -> Page:
        return cls((folder / "report.html").read_text())

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.inside = tag
        known = dict(attrs)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action")]
        self.words += [v or "" for k, v in attrs if k in ("alt", "aria-label")]
        if known.get("http-equiv") == "Content-Security-Policy":
            self.policy = known["content"] or ""
        named = known.get("alt") or known.get("aria-label") or known.get("aria-hidden")
        if tag in ("img", "audio", "svg") and not named:
            self.unnamed.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.inside in ("h1", "h2", "h3", "h4") and data.strip():
            self.titles.append(data.strip())


def clip_set(folder: Path, name: str, prompts: list[str], low: float = 220) -> ClipSet:
    folder = folder / name
    folder.mkdir(parents=True)
    files = []
    for i, prompt in enumerate(prompts):
        path = folder / f"{i:03d}.wav"
        time = torch.arange(4000) / 8000
        wave = 0.3 * torch.sin(2 * math.pi * (low + 110 * i) * time)[None]
        write(Clip(wave, 8000), path)
        files.append(ClipFile(path, path.name, prompt, prompt, i, base="mini"))
    return ClipSet(name, tuple(files))


def score(value: float, low: float = NAN, high: float = NAN, n: int = 3, better="higher", note=""):
    return Score(value, low, high, n, better, note)


def alignments(count: int, **more: Any) -> Evaluation:
    values = np.linspace(0.1, 0.4, count)
    return Evaluation(
        scores={
            "audio_alignment": score(0.25, 0.2, 0.3, count),
            "text_alignment": score(0.25, NAN, NAN, count),
        },
        made={"audio_alignment": values, "text_alignment": values[::-1].copy()},
        **more,
    )


def paired() -> Evaluation:
    """Three pairs: sound is better, clipping fell, text is the same."""
    made = {
        "audio_alignment": np.array([0.5, 0.6, 0.7]),
        "text_alignment": np.array([0.2, 0.3, NAN]),
        "clipping": np.array([0.0, 0.0, 0.0000123456789]),
        "loudness": np.array([-20.0, -20.0, -20.0]),
    }
    against = {
        "audio_alignment": np.array([0.4, 0.4, 0.4]),
        "text_alignment": np.array([0.3, 0.2, NAN]),
        "clipping": np.array([0.01, 0.02, 0.03]),
        "loudness": np.array([-14.0, -15.0, -16.0]),
    }
    scores = {
        "audio_alignment": score(0.6, 0.5, 0.7),
        "against/audio_alignment": score(0.4, 0.4, 0.4),
        "difference/audio_alignment": score(0.2, 0.1, 0.3),
        "text_alignment": score(0.25, 0.2, 0.3, 2),
        "against/text_alignment": score(0.25, 0.2, 0.3, 2),
        "difference/text_alignment": score(0.0, -0.1, 0.1, 2),
        "frechet_distance": score(
            1.2, 0.8, 1.7, better="lower", note="fewer clips than dimensions"
        ),
        "kernel_distance": score(0.7, 0.5, 0.9, better="lower", note="bandwidth 0.731"),
        "clipping": score(0.0, better="lower"),
        "against/clipping": score(0.02, 0.01, 0.03, better="lower"),
        "difference/clipping": score(-0.02, -0.03, -0.01, better="lower"),
        "loudness": score(-20.0, -20.0, -20.0),
        "difference/loudness": score(-5.0, -6.0, -4.0),
        "steerability/tempo": score(0.6, 0.5, 0.7),
        "what/nobody_knows": score(3.25),
    }
    return Evaluation(
        scores=scores,
        p={"difference/audio_alignment": 0.025, "difference/text_alignment": 1.0},
        not_computed={"recall": "five reference rows are needed, there are 3"},
        about={
            "recall": About("Recall", "Variety.", "higher"),
            "loudness": About("Loudness", "To compare.", "neither"),
        },
        made=made,
        against=against,
        pairs=[(0, 0), (1, 1), (2, 2)],
        warnings=["tuned holds 2 files twice"],
        influence=np.array([0.01, NAN, -0.2]),
        by_size=(np.array([1, 2, 3]), np.array([3.0, 2.0, 5 / 3])),
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    prompts = ["a tune", EVIL, ""]
    made, against = clip_set(root, "tuned", prompts), clip_set(root, "base", prompts, 900)
    reference = clip_set(root, "mine", ["", ""], 200)
    extra = {"device": "cpu", "checkpoint_hashes": {"base": "b5"}, "from": Path("a/b")}
    write_report(root, paired(), ClapEmbedder.toy(), made, reference, against, extra=extra)
    return root


def test_metrics_json_follows_the_schema(report: Path):
    numbers = json.loads((report / "metrics.json").read_text())
    assert numbers["schema"] == 1
    assert numbers["scores"]["audio_alignment"] == {
        "value": 0.6, "low": 0.5, "high": 0.7, "n": 3, "better": "higher"
    }  # fmt: skip
    assert numbers["scores"]["kernel_distance"]["note"] == "bandwidth 0.731"
    assert numbers["scores"]["clipping"]["low"] is None
    assert numbers["scores"]["difference/audio_alignment"]["p"] == 0.025
    assert numbers["not_computed"] == {"recall": "five reference rows are needed, there are 3"}
    assert numbers["warnings"] == ["tuned holds 2 files twice"]
    facts = numbers["made_with"]
    assert (facts["base"], facts["seeds"], facts["embedder"]) == ("mini", [0, 1, 2], "toy")
    assert set(facts["checkpoint_hashes"]) == {"embedder", "base"}
    assert (facts["device"], facts["dim"], facts["from"]) == ("cpu", 8, "a/b")
    assert {"torch", "soxr", "numpy", "scipy", "transformers", "mir_eval", "librosa"} <= set(
        facts["versions"]
    )
    assert facts["against"]["files"] == 3


def test_what_is_not_finite_is_none_in_metrics_json():
    evaluation = Evaluation(scores={"x": score(math.inf)})
    found = metrics(evaluation, {"spread": np.float32(NAN), "count": np.int64(3)})
    assert found["scores"]["x"]["value"] is None
    assert found["made_with"] == {"spread": None, "count": 3}
    json.dumps(found, allow_nan=False)


def test_clips_csv_has_every_value_of_every_clip(report: Path):
    with (report / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["set"] for row in rows] == ["tuned"] * 3 + ["base"] * 3
    assert rows[1]["prompt"] == EVIL
    assert (rows[1]["file"], rows[1]["seed"]) == ("001.wav", "1")
    assert [row["text_alignment"] for row in rows[:3]] == ["0.2", "0.3", ""]
    assert rows[2]["clipping"] == "1.23457e-05"
    assert rows[3]["loudness"] == "-14"
    assert [row["influence"] for row in rows] == ["0.01", "", "-0.2", "", "", ""]


def test_page_asks_nothing_of_the_network(report: Path):
    text = (report / "report.html").read_text()
    page = Page(text)
    assert page.links
    assert all(link.startswith(("data:", "#")) for link in page.links)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert not {"script", "iframe", "object"} & set(page.tags)
    # What slipped through all the same, the browser would refuse.
    assert page.policy.startswith("default-src 'none'")
    assert "http" not in page.policy


def test_prompts_are_text_and_nothing_else(report: Path):
    page = Page.of(report)
    assert any(EVIL in words for words in page.words)
    assert page.tags.count("h1") == 1


def test_everything_to_see_or_hear_has_a_name(report: Path):
    assert Page.of(report).unnamed == []


def test_page_plays_and_shows_both_sets_beside_the_reference(report: Path):
    page = Page.of(report)
    # References, three pairs, and the worst clip by influence and by text.
    assert page.tags.count("audio") == 2 + 3 * 2 + 2
    for expected in ("tuned", "base", "higher is better", "lower is better", "seed 1", "p = 0.025"):
        assert expected in page.text


def test_warnings_come_before_any_score(report: Path):
    text = Page.of(report).text
    assert text.index("tuned holds 2 files twice") < text.index("A dot is the value")


def test_what_changed_is_told_with_its_direction(report: Path):
    text = Page.of(report).text
    assert "Audio alignment: better, +0.200 (0.100 to 0.300), p = 0.025" in text
    assert "Clipping: better, −0.020 (−0.030 to −0.010)" in text
    assert "Text alignment: unclear, +0.000 (−0.100 to 0.100), p = 1" in text
    assert "Loudness: " not in text  # of which neither end is better
    assert "difference −5.000 (−6.000 to −4.000)" in text


def test_scores_have_their_sections_and_none_is_lost(report: Path):
    page = Page.of(report)
    order = [page.titles.index(t) for t in ("Sets as wholes", "Signal health", "Steerability")]
    assert order == sorted(order)
    assert "What: nobody knows" in page.titles
    assert "3.250" in page.text
    assert "Recall not computed: five reference rows are needed, there are 3" in page.text


def test_kernel_distance_leads_where_frechet_should_be_read_with_care(tmp_path: Path, report: Path):
    def order(note: str) -> list[str]:
        evaluation = paired()
        frechet = evaluation.scores["frechet_distance"]
        evaluation.scores["frechet_distance"] = replace(frechet, note=note)
        return report_page.leading(evaluation)

    first = ["audio_alignment", "text_alignment"]
    assert order("fewer clips than dimensions") == [*first, "kernel_distance", "frechet_distance"]
    assert order("") == [*first, "frechet_distance", "kernel_distance"]
    titles = Page.of(report).titles
    assert titles.index("Kernel distance") < titles.index("Frechet distance")


def test_distance_by_size_says_what_endlessly_many_clips_give(report: Path):
    # 1 + 2 / clips
    assert "endlessly many clips would give, 1.000" in Page.of(report).text


def test_same_sets_same_bytes(tmp_path: Path):
    made, reference = clip_set(tmp_path, "tuned", ["a", "b", "c"]), clip_set(tmp_path, "mine", [""])
    pages = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_report(tmp_path / name, alignments(3), ClapEmbedder.toy(), made, reference)
        pages.append([p.read_bytes() for p in sorted((tmp_path / name).iterdir())])
    assert pages[0] == pages[1]


def test_large_sets_show_one_clip_of_each_prompt_first(tmp_path: Path):
    made = clip_set(tmp_path, "made", ["same"] * 12 + ["rare"])
    reference = clip_set(tmp_path, "mine", [""] * 5)
    write_report(tmp_path, alignments(13), ClapEmbedder.toy(), made, reference)
    page = Page.of(tmp_path)
    assert page.tags.count("audio") == 12 + 3 + 3
    assert any("Mel-spectrogram of 012.wav" in words for words in page.words)


def test_ten_thousand_clips_decode_only_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    one = clip_set(tmp_path, "made", ["a"]).files[0]
    files = tuple(replace(one, file=f"{i}.wav", seed=i) for i in range(10_000))
    decoded = []
    plain = report_page.excerpt

    def counted(*options: Any) -> Any:
        decoded.append(options)
        return plain(*options)

    monkeypatch.setattr(report_page, "excerpt", counted)
    evaluation = alignments(10_000, influence=np.arange(10_000.0))
    made, reference = ClipSet("made", files), ClipSet("fma_pop.npz", ())
    write_report(tmp_path, evaluation, ClapEmbedder.toy(), made, reference)
    assert len(decoded) == 12 + 3 + 3
    assert Page.of(tmp_path).tags.count("tr") == 1 + 500
    assert "The first 500; all are in clips.csv" in Page.of(tmp_path).text
    assert len((tmp_path / "clips.csv").read_text().splitlines()) == 10_001


def test_statistics_as_reference_have_nothing_to_hear(tmp_path: Path):
    made = clip_set(tmp_path, "made", ["a"])
    nothing = ClipSet("fma_pop.npz", ())
    write_report(tmp_path, alignments(1), ClapEmbedder.toy(), made, nothing)
    page = Page.of(tmp_path)
    assert "compared with the statistics fma_pop.npz" in page.text
    assert page.tags.count("audio") == 1
    assert "#reference" not in page.links


def test_one_clip_without_prompt_interval_or_pair_makes_a_page(tmp_path: Path):
    made, against = clip_set(tmp_path, "made", [""]), clip_set(tmp_path, "other", [""])
    evaluation = Evaluation(
        scores={"audio_alignment": score(0.5, n=1), "against/audio_alignment": score(0.4, n=1)},
        not_computed={
            "text_alignment": "no prompt is known of any clip",
            "against/text_alignment": "no prompt is known of any clip",
            "difference/audio_alignment": "no clips of the two sets share a prompt and a seed",
            "difference/text_alignment": "no clips of the two sets share a prompt and a seed",
        },
        made={"audio_alignment": np.array([0.5]), "text_alignment": np.array([NAN])},
        against={"audio_alignment": np.array([0.4]), "text_alignment": np.array([NAN])},
    )
    write_report(tmp_path, evaluation, ClapEmbedder.toy(), made, made, against)
    text = Page.of(tmp_path).text
    assert "not computed: no prompt is known of any clip" in text
    assert text.count("Not compared: no clips of the two sets share a prompt and a seed") == 1


def test_clip_that_is_gone_is_said(tmp_path: Path):
    made = clip_set(tmp_path, "made", ["a"])
    made.files[0].path.unlink()
    with pytest.raises(InputError, match=r"000\.wav"):
        write_report(tmp_path, alignments(1), ClapEmbedder.toy(), made, ClipSet("none", ()))


def test_extra_facts_do_not_hide_known_ones(tmp_path: Path):
    made = clip_set(tmp_path, "made", ["a"])
    facts = made_with(ClapEmbedder.toy(), made, made, extra={"versions": {"peer": "1.0"}})
    assert facts["versions"]["peer"] == "1.0"
    assert facts["versions"]["torch"] == torch.__version__
    assert "against" not in facts


def test_words_that_a_spreadsheet_would_run_are_marked_as_text(tmp_path: Path):
    made = clip_set(tmp_path, "made", ["=1+1", "-a tune", "a = b", "-3"])
    quiet = Evaluation(made={"loudness": np.full(4, -20.0)})
    folder = tmp_path / "report"
    folder.mkdir()
    write_report(folder, quiet, ClapEmbedder.toy(), made, ClipSet("mine", ()))
    with (folder / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == ["'=1+1", "'-a tune", "a = b", "-3"]
    assert {row["loudness"] for row in rows} == {"-20"}


def test_paths_that_are_no_text_can_be_written(tmp_path: Path):
    made = replace(clip_set(tmp_path, "made", ["a"]), name="b\udcff")
    embedder = ClapEmbedder.toy()
    embedder.name = "models/\udcff"
    folder = tmp_path / "report"
    folder.mkdir()
    write_report(folder, Evaluation(), embedder, made, ClipSet("mine", ()))
    numbers = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert numbers["made_with"]["embedder"] == "models/\udcff"
    assert r"b\udcff" in (folder / "report.html").read_text(encoding="utf-8")
