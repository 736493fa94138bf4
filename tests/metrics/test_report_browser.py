"""The report in a real browser: quiet, nothing from the network, players play, fits a phone."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from musictune.audio import Clip, write
from musictune.metrics.base import About, Score
from musictune.metrics.embedders import ClapEmbedder
from musictune.metrics.folder import ClipFile, ClipSet
from musictune.metrics.report import write_report
from musictune.metrics.suite import Evaluation

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="no chromium; Debian has it as `chromium`"),
]

SECONDS = 2.0
PHONE = 360  # pixels
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
    "--virtual-time-budget=20000",
]

# The page in a frame as wide as a phone; it is left as it is, and looked at from outside.
OUTSIDE = """<!doctype html><iframe style="width:{width}px;height:800px;border:0" srcdoc="{page}">
</iframe><script>
addEventListener("load", async () => {{
  const frame = document.querySelector("iframe"), page = frame.contentDocument;
  for (const part of page.querySelectorAll("details")) part.open = true;
  const lengths = await Promise.all([...page.querySelectorAll("audio")].map(player =>
    new Promise(done => {{
      player.onloadedmetadata = () => done(player.duration);
      player.onerror = () => done(player.error.message);
      player.preload = "metadata";
      player.load();
    }})));
  const found = {{
    lengths,
    pictures: [...page.images].map(image => image.naturalWidth),
    width: page.documentElement.scrollWidth,
    inside: frame.contentWindow.innerWidth,
    plots: page.querySelectorAll("svg circle").length,
    asked: frame.contentWindow.performance.getEntriesByType("resource").map(e => e.name),
  }};
  document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
}});
</script>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    sets = []
    for name, low in (("tuned", 220), ("base", 900), ("mine", 200)):
        files = []
        for i in range(4):
            path = root / f"{name}-{i}-{'long' * 12}.wav"
            time = torch.arange(int(SECONDS * 16_000)) / 16_000
            wave = 0.3 * torch.sin(2 * math.pi * (low + 110 * i) * time)[None]
            write(Clip(wave, 16_000), path)
            prompt = "a tune " * 12 if i else "x" * 200
            files.append(ClipFile(path, path.name, prompt, prompt, i))
        sets.append(ClipSet(name, tuple(files)))
    values = np.linspace(0.1, 0.4, 4)
    evaluation = Evaluation(
        scores={
            "audio_alignment": Score(0.25, 0.1, 0.4, 4, "higher"),
            "against/audio_alignment": Score(0.15, 0.1, 0.2, 4, "higher"),
            "difference/audio_alignment": Score(0.1, 0.05, 0.15, 4, "higher"),
            "frechet_distance": Score(1.2, 0.8, 1.7, 4, "lower", "too few clips"),
            "steerability/tempo": Score(0.5, 0.4, 0.6, 4, "higher"),
        },
        p={"difference/audio_alignment": 0.125},
        about={"steerability/tempo": About("Tempo", "Follows it. " * 9, "higher")},
        made={"audio_alignment": values, "text_alignment": values},
        against={"audio_alignment": values[::-1] - 0.1, "text_alignment": values},
        pairs=[(i, i) for i in range(4)],
        warnings=["tuned mixes sample rates"],
        influence=values,
        by_size=(np.array([2, 3, 4]), np.array([2.0, 1.7, 1.5])),
    )
    write_report(root, evaluation, ClapEmbedder.toy(), *[sets[i] for i in (0, 2, 1)])
    return root / "report.html"


def look(page: Path, tmp_path: Path, *options: str) -> tuple[str, str]:
    """The page after it was loaded, and what the browser said meanwhile."""
    assert BROWSER
    command = [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", *options]
    done = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120
    )
    return done.stdout, done.stderr


def asked_of_network(page: Path, tmp_path: Path) -> tuple[list[str], str]:
    """Addresses that a page, not the browser itself, asked for, and what the console said."""
    log = tmp_path / f"{page.stem}.json"
    dom, said = look(page, tmp_path, f"--log-net-log={log}")
    assert "</html>" in dom
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    starts = [
        e for e in events if "url" in e and e.get("initiator", "not an origin") != "not an origin"
    ]
    return [e["url"] for e in starts], "\n".join(re.findall(r".*:CONSOLE.*", said))


def test_page_says_nothing_and_asks_for_nothing(report: Path, tmp_path: Path):
    assert asked_of_network(report, tmp_path) == ([], "")
    other = tmp_path / "other.html"
    other.write_text('<img src="http://example.invalid/x.png"><script>console.log("hi")</script>')
    asked, said = asked_of_network(other, tmp_path)
    assert asked == ["http://example.invalid/x.png"]  # such things would be seen
    assert "hi" in said


def test_players_play_pictures_show_and_a_phone_need_not_scroll(report: Path, tmp_path: Path):
    outside = tmp_path / "outside.html"
    outside.write_text(OUTSIDE.format(width=PHONE, page=html.escape(report.read_text())))
    page, _ = look(outside, tmp_path)
    found = re.search(r"FOUND(.*)END", page)
    assert found
    seen = json.loads(html.unescape(found[1]))
    assert len(seen["lengths"]) == 3 + 2 * 4 + 4
    assert seen["lengths"] == pytest.approx([SECONDS] * len(seen["lengths"]), abs=0.1)
    assert len(seen["pictures"]) == len(seen["lengths"]) + 4
    assert all(seen["pictures"])
    assert seen["plots"] > 5
    assert seen["inside"] == PHONE
    assert seen["width"] <= PHONE
    assert seen["asked"] == []
