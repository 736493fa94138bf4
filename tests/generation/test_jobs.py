"""Files of prompts, plain and with a JSON object per line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from musictune.errors import InputError
from musictune.generation.jobs import Job, read_jobs
from musictune.generation.sampling import Sampling
from musictune.methods.composition import Addition


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "adapter.json").write_text('{"concepts": []}')
    return folder


def written(folder: Path, *lines: str, name: str = "jobs.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"prompt": st.text(min_size=1).filter(lambda text: text.strip())},
            optional={
                "seconds": st.floats(0.01, 3600),
                "seed": st.integers(0, 2**62 - 1),
                "count": st.integers(1, 1000),
            },
        ),
        min_size=1,
    ),
    st.booleans(),
)
def test_what_is_written_is_read(
    tmp_path: Path, lines: list[dict[str, object]], ascii_only: bool
) -> None:
    """Whatever the text holds, a line separator of Unicode too, and with blank lines between."""
    texts = [json.dumps(line, ensure_ascii=ascii_only) for line in lines]
    jobs = read_jobs(written(tmp_path, "", *texts, "  ", ""))
    expected = [{**line, "prompt": str(line["prompt"]).strip()} for line in lines]
    assert jobs == [Job(**line) for line in expected]  # type: ignore[arg-type]


def test_an_adapter_is_a_run_with_its_weight(tmp_path: Path, run: Path) -> None:
    lines = [json.dumps({"prompt": "a", "adapter": given}) for given in (str(run), f"{run}=0.5")]
    whole, half = read_jobs(written(tmp_path, *lines))
    assert whole.adapter == Addition(run) and half.adapter == Addition(run, 0.5)
    assert whole.name == f"{run}=1" and half.name == f"{run}=0.5"


def test_what_a_line_leaves_out_is_as_for_all() -> None:
    common = (8.0, 5, 2, Sampling(), None)
    plain = Job("a").requests(*common)
    assert [(each.seconds, each.seed, each.adapter) for each in plain] == [
        (8.0, 5, None),
        (8.0, 6, None),
    ]
    own = Job("a", None, 3.0, 0, 1).requests(*common)
    assert [(each.seconds, each.seed) for each in own] == [(3.0, 0)]


def test_other_files_are_a_prompt_per_line(tmp_path: Path) -> None:
    path = written(tmp_path, '{"prompt": "a"}', "", " slow piano ", name="prompts.txt")
    assert read_jobs(path) == [Job('{"prompt": "a"}'), Job("slow piano")]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("slow piano", "is no JSON"),
        ('{"prompt": "a"', "is no JSON"),
        ("[" * 100_000, "is nested too deep|is no JSON"),
        ('["a"]', "is no JSON object"),
        ("{}", "has no prompt"),
        ('{"prompt": "  "}', "has no prompt"),
        ('{"prompt": 3}', "has no prompt"),
        ('{"prompt": "a", "sedd": 3}', "has 'sedd'; known are prompt, adapter, seconds"),
        ('{"prompt": "a", "seconds": "8"}', 'seconds "8" must be a number'),
        ('{"prompt": "a", "seconds": true}', "seconds true must be a number"),
        ('{"prompt": "a", "seconds": NaN}', "seconds NaN must be a number"),
        ('{"prompt": "a", "seconds": -1}', "-1 seconds cannot be made"),
        ('{"prompt": "a", "seed": -1}', "seed -1 must be a whole number from 0 on"),
        ('{"prompt": "a", "seed": 1.5}', "seed 1.5 must be a whole number"),
        ('{"prompt": "a", "seed": 4611686018427387904}', "below 2.62"),
        ('{"prompt": "a", "count": 0}', "count 0 must be a whole number from 1 on"),
        ('{"prompt": "a", "count": true}', "count true must be"),
        ('{"prompt": "a", "adapter": 3}', "adapter 3 must be a run"),
        ('{"prompt": "a", "adapter": "no/run"}', "adapter no/run does not exist"),
        ('{"prompt": "a", "adapter": "no/run=x"}', "weight 'x'"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, says: str) -> None:
    path = written(tmp_path, '{"prompt": "good"}', "", line)
    with pytest.raises(InputError, match=rf"^line 3 of .*jobs\.jsonl.*({says})") as caught:
        read_jobs(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["jobs.jsonl", "jobs.txt"])
def test_bad_files_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_jobs(tmp_path / name)
    (tmp_path / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_jobs(tmp_path / name)
    (tmp_path / name).write_text(" \n\n")
    with pytest.raises(InputError, match="is empty"):
        read_jobs(tmp_path / name)
