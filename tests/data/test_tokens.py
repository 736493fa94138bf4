"""The token cache, and crops that can be repeated."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from musictune.audio import Clip
from musictune.data.tokens import TokenDataset, cached_tokens, collate, epoch_order, split
from musictune.errors import InputError


class Encoder:
    """Tokens that follow from the samples; counts the clips it was given."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, clips: Sequence[Clip]) -> SimpleNamespace:
        self.seen += len(clips)
        lengths = torch.tensor([clip.samples // 10 for clip in clips])
        codes = torch.zeros(len(clips), 4, int(lengths.max()), dtype=torch.long)
        for row, clip in enumerate(clips):
            codes[row, :, : lengths[row]] = int(clip.wave[0, 0] * 1000) + torch.arange(4)[:, None]
        return SimpleNamespace(codes=codes, lengths=lengths)


def some(count: int = 3) -> list[Clip]:
    return [Clip(torch.full((1, 100 + 10 * i), (i + 1) / 20), 8_000) for i in range(count)]


class TestCache:
    def test_clips_are_encoded_once(self, tmp_path: Path) -> None:
        encode = Encoder()
        first = cached_tokens(some(10), encode, "a", tmp_path / "tokens")
        again = cached_tokens(some(10), encode, "a", tmp_path / "tokens")
        assert encode.seen == 10
        assert [tuple(codes.shape) for codes in first] == [(4, 10 + i) for i in range(10)]
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
        assert first[2].dtype == torch.int64
        assert first[2][:, 0].tolist() == [150, 151, 152, 153]

    def test_another_codec_or_another_sample_is_another_entry(self, tmp_path: Path) -> None:
        encode = Encoder()
        cached_tokens(some(), encode, "a", tmp_path)
        cached_tokens(some(), encode, "b", tmp_path)
        assert encode.seen == 6
        changed = some()
        changed[1].wave[0, 50] = 0.3
        cached_tokens(changed, encode, "a", tmp_path)
        assert encode.seen == 7

    @pytest.mark.parametrize("damage", ["empty", "cut", "text"])
    def test_a_damaged_file_is_made_anew(self, tmp_path: Path, damage: str) -> None:
        encode = Encoder()
        first = cached_tokens(some(), encode, "a", tmp_path)
        path = sorted(tmp_path.iterdir())[0]
        content = path.read_bytes()
        path.write_bytes({"empty": b"", "cut": content[:-3], "text": b"x" * 200}[damage])
        again = cached_tokens(some(), encode, "a", tmp_path)
        assert encode.seen == 4
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
        assert path.read_bytes() == content

    def test_a_full_disk_is_said_and_leaves_no_part(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(self: Path, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match="disk full"):
            cached_tokens(some(), Encoder(), "a", tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_file_where_the_folder_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "tokens").touch()
        with pytest.raises(InputError, match="cannot write"):
            cached_tokens(some(), Encoder(), "a", tmp_path / "tokens")


def dataset(seed: int = 0, dropout: float = 0.0, frames: int = 8) -> TokenDataset:
    codes = [torch.arange(4 * n).reshape(4, n) % 1000 for n in (5, 8, 40, 90)]
    return TokenDataset(codes, [("one", "two", "three")] * 4, frames, seed, dropout)


class TestDataset:
    @given(st.integers(0, 2**31), st.integers(0, 1000), st.integers(0, 3))
    def test_an_item_depends_on_seed_epoch_and_index_alone(
        self, seed: int, epoch: int, index: int
    ) -> None:
        one, other = dataset(seed), dataset(seed)
        for i in range(4):  # whatever was drawn before
            other.item(i, i)
        other.set_epoch(epoch)
        mine, theirs = one.item(epoch, index), other[index]
        assert torch.equal(mine["codes"], theirs["codes"])
        assert mine["text"] == theirs["text"]
        codes = one.codes[index]
        width = mine["codes"].shape[1]
        assert width == min(8, codes.shape[1])
        windows = codes.unfold(1, width, 1).transpose(0, 1)
        assert any(torch.equal(mine["codes"], window) for window in windows)

    def test_epochs_and_seeds_differ_and_reach_both_ends(self) -> None:
        starts = {int(dataset().item(epoch, 2)["codes"][0, 0]) for epoch in range(600)}
        assert starts == set(range(33))
        assert {dataset().item(epoch, 2)["text"] for epoch in range(40)} == {"one", "two", "three"}
        first = [int(dataset(seed).item(0, 3)["codes"][0, 0]) for seed in range(20)]
        assert len(set(first)) > 5

    def test_dropout_takes_its_share_and_moves_nothing_else(self) -> None:
        some_dropped = [dataset(dropout=0.3).item(epoch, 3) for epoch in range(500)]
        none_dropped = [dataset().item(epoch, 3) for epoch in range(500)]
        share = sum(item["text"] == "" for item in some_dropped) / 500
        assert 0.24 < share < 0.36
        for item, other in zip(some_dropped, none_dropped, strict=True):
            assert torch.equal(item["codes"], other["codes"])
            assert item["text"] in ("", other["text"])

    def test_collate_pads_and_says_where(self) -> None:
        batch = collate([dataset()[0], dataset()[1]])
        assert batch["codes"].shape == (2, 4, 8)
        assert batch["lengths"].tolist() == [5, 8]
        assert not batch["codes"][0, :, 5:].any()
        assert len(batch["texts"]) == 2

    def test_iteration_ends(self) -> None:
        data = dataset()
        assert len([data[i] for i in range(len(data))]) == 4
        with pytest.raises(IndexError):
            data[4]

    def test_bad_data_are_refused(self) -> None:
        with pytest.raises(InputError, match="no clips"):
            TokenDataset([], [], 8)
        with pytest.raises(InputError, match="captions"):
            TokenDataset([torch.zeros(4, 8)], [()], 8)


@given(st.integers(1, 300), st.integers(0, 2**31), st.integers(0, 100))
def test_an_epoch_takes_everything_once(n: int, seed: int, epoch: int) -> None:
    order = epoch_order(n, seed, epoch)
    assert sorted(order) == list(range(n))
    assert order == epoch_order(n, seed, epoch)


def test_epochs_are_ordered_differently() -> None:
    assert len({tuple(epoch_order(20, 0, epoch)) for epoch in range(10)}) == 10


class TestSplit:
    @given(
        st.lists(st.sampled_from("abc"), min_size=1, max_size=60),
        st.floats(0.01, 0.9),
        st.integers(0, 1000),
    )
    def test_held_out_clips_are_the_last_of_each_source(
        self, sources: list[str], fraction: float, seed: int
    ) -> None:
        train, held = split(len(sources), fraction, seed, sources)
        assert sorted(train + held) == list(range(len(sources)))
        assert train
        assert bool(held) == (len(sources) >= 4)
        for name in set(sources):
            last_learned = max((i for i in train if sources[i] == name), default=-1)
            assert all(i > last_learned for i in held if sources[i] == name)

    def test_one_recording_and_no_share(self) -> None:
        assert split(10, 0.2, 0) == (list(range(8)), [8, 9])
        assert split(10, 0.0, 0) == (list(range(10)), [])

    def test_single_window_sources_are_drawn_by_seed(self) -> None:
        sources = [str(i) for i in range(20)]
        chosen = {tuple(split(20, 0.1, seed, sources)[1]) for seed in range(10)}
        assert all(len(held) == 2 for held in chosen)
        assert len(chosen) > 3
