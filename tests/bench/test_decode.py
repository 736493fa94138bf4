"""`musictune bench decode`: equal sides, known figures, its file, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from musictune.__main__ import main
from musictune.bench import decode_floor, decode_models, decode_rows, decode_sides
from musictune.bench.decode import Wanted
from musictune.bench.decode_measure import Measured, measure, measure_codec
from musictune.bench.decode_models import CAPTION, Shape
from musictune.bench.decode_sides import Side
from musictune.bench.memory import tensor_bytes
from musictune.errors import CheckFailed, InputError
from musictune.models.musicgen import MusicGen

AUDIOCRAFT = os.environ.get("MUSICTUNE_AUDIOCRAFT", "")
needs_audiocraft = pytest.mark.skipif(
    not AUDIOCRAFT, reason="MUSICTUNE_AUDIOCRAFT names no source of audiocraft 1.3.0"
)
CPU = torch.device("cpu")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "decode", *arguments])
    code = ended.value.code
    assert isinstance(code, int)
    return code


# --- the sides play the same model ---


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("clips", [1, 3])
def test_greedy_codes_are_those_of_generate(channels: int, clips: int) -> None:
    model = MusicGen.toy(channels)
    theirs = decode_sides.transformers(model, "float32", clips).play(24, 0, True)
    mine = decode_sides.ours(model, "float32", clips, 24).play(24, 0, True)
    assert theirs.shape == (clips, model.codebooks, 24)
    assert decode_sides.equal_share([theirs, mine]) == [1.0, 1.0]


def test_the_share_of_equal_codes_can_be_less() -> None:
    codes = torch.zeros(1, 4, 10, dtype=torch.int64)
    other = codes.clone()
    other[0, 0, :4] = 1
    assert decode_sides.equal_share([codes, other]) == [1.0, pytest.approx(0.9)]


def test_generate_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MusicGen.toy()
    before = model.network.audio_encoder.decode
    side = decode_sides.transformers(model, "bfloat16", 1)
    side.play(10, 0, False)
    assert model.network.audio_encoder.decode == before
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    monkeypatch.setattr(model.network, "generate", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decode_sides.transformers(model, "float32", 1).play(10, 0, False)
    assert model.network.audio_encoder.decode == before


def test_a_session_is_played_again_and_again() -> None:
    side = decode_sides.ours(MusicGen.toy(), "float32", 2, 20)
    first = side.play(20, 3, False)
    assert torch.equal(side.play(20, 3, False), first)
    assert not torch.equal(side.play(20, 4, False), first)
    assert side.play(12, 3, False).shape[-1] == 12


@needs_audiocraft
@pytest.mark.parametrize("channels", [1, 2])
def test_audiocraft_with_our_weights_says_the_same(channels: int) -> None:
    model = MusicGen.toy(channels)
    peer = decode_sides.load_peer()
    lm = peer.language_model(Path(AUDIOCRAFT), model)
    texts, frames = [CAPTION] * 2, 30
    codes = torch.randint(model.vocabulary, (2, model.codebooks, frames))
    found = peer.logits(lm, texts, codes)
    expected = undelayed_logits(model, texts, codes)
    assert expected.abs().max() > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    sides = [
        decode_sides.transformers(model, "float32", 2),
        decode_sides.audiocraft(model, "float32", 2, Path(AUDIOCRAFT)),
        decode_sides.ours(model, "float32", 2, frames),
    ]
    assert decode_sides.equal_share([side.play(frames, 0, True) for side in sides]) == [1.0] * 3


@needs_audiocraft
def test_audiocrafts_stubs_are_seen_by_nobody_else() -> None:
    decode_sides.audiocraft(MusicGen.toy(), "bfloat16", 1, Path(AUDIOCRAFT)).play(8, 0, False)
    for name in ("torchaudio", "omegaconf", "flashy", "spacy"):
        module = sys.modules.get(name)
        assert module is None or module.__spec__.origin is not None, name


def test_a_folder_without_audiocraft_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.tar.gz").write_bytes(b"no archive")
    for source in (tmp_path, tmp_path / "broken.tar.gz", tmp_path / "missing"):
        with pytest.raises(InputError, match="pip download"):
            decode_sides.audiocraft(MusicGen.toy(), "float32", 1, source)


@torch.no_grad()
def undelayed_logits(model: MusicGen, texts: list[str], codes: Tensor) -> Tensor:
    clips, books, frames = codes.shape
    inputs, _, _ = model.delay(codes, torch.full((clips,), frames), model.pad)
    states, heard = model.condition(texts)
    logits = model.backbone(
        input_ids=inputs.flatten(0, 1),
        encoder_hidden_states=states,
        encoder_attention_mask=heard,
        use_cache=False,
    ).logits.unflatten(0, (clips, books))
    index = torch.arange(frames) + torch.arange(books)[:, None] // model.channels
    return logits.gather(2, index[None, :, :, None].expand(clips, -1, -1, logits.shape[-1]))


# --- figures known beforehand ---


@pytest.fixture(scope="module")
def random_model() -> MusicGen:
    return decode_models.build_model(Shape(3, 32, 2), CPU)


def test_random_models_have_the_shape_they_say(random_model: MusicGen) -> None:
    model = random_model
    assert len(model.backbone.model.decoder.layers) == 3
    assert (model.frame_rate, model.max_seconds, model.codebooks) == (50, 30, 4)
    assert model.pad == model.vocabulary == 2048
    assert model.network.audio_encoder.config.num_quantizers == 4


@pytest.mark.parametrize(
    ("name", "millions", "milliseconds"),
    [("small", 361, 0.203), ("medium", 1600, 0.848), ("large", 2840, 1.46)],
)
def test_floors_are_those_of_arithmetic(name: str, millions: int, milliseconds: float) -> None:
    shape = decode_models.find_shape(name)
    config = decoder_config(shape)
    assert decode_floor.streamed_weights(config) / 1e6 == pytest.approx(millions, rel=0.01)
    found = decode_floor.step_bytes(config, 2, clips=1, steps=1503, tokens=0) / 4.3e12
    assert found * 1000 == pytest.approx(milliseconds, rel=0.02)


def test_streamed_weights_are_those_of_the_layers(random_model: MusicGen) -> None:
    decoder = random_model.backbone
    linears = [
        layer.weight
        for name, layer in decoder.named_modules()
        if isinstance(layer, torch.nn.Linear) and not name.endswith(("attn.k_proj", "attn.v_proj"))
    ]
    own = [
        part.weight
        for layer in decoder.model.decoder.layers
        for part in (layer.self_attn.k_proj, layer.self_attn.v_proj)
    ]
    streamed = tensor_bytes([*linears, *own]) // 4
    assert decode_floor.streamed_weights(random_model.network.config.decoder) == streamed


def test_cache_bytes_are_those_of_the_caches() -> None:
    model = MusicGen.toy()
    words = model.tokens([CAPTION])[0].shape[1]
    each = 2 * 2 * 16 * 4  # keys and values of two layers of 16, in float32
    assert decode_sides.transformers(model, "float32", 3).cache_bytes(10) == 6 * (10 + words) * each
    assert decode_sides.ours(model, "float32", 3, 8).cache_bytes(10) == (6 * 10 + 3 * words) * each


def decoder_config(shape: Shape) -> object:
    from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig

    return MusicgenDecoderConfig(
        num_hidden_layers=shape.layers, hidden_size=shape.width, ffn_dim=4 * shape.width
    )


# --- measuring and judging ---


def test_each_side_is_played_in_turn() -> None:
    model, played = MusicGen.toy(), []

    def side(name: str) -> Side:
        def play(frames: int, seed: int, greedy: bool) -> Tensor:
            played.append((name, frames))
            return torch.zeros(1, model.codebooks, frames, dtype=torch.int64)

        return Side(name, "float32", play, lambda steps: 7 * steps)

    found = measure([side("a"), side("b")], model, 60, 2, lambda *_, **__: None)
    assert [name for name, _ in played[:2]] == ["a", "b"]
    assert played[2:] == [("a", 60), ("b", 60), ("b", 60), ("a", 60)]
    assert [(each.steps, each.cache, len(each.wall)) for each in found] == [(63, 441, 2)] * 2


def test_a_side_that_does_less_is_caught() -> None:
    lazy = Side("lazy", "float32", lambda *_: torch.zeros(1, 4, 3, dtype=torch.int64), lambda _: 0)
    with pytest.raises(CheckFailed, match="lazy"):
        measure([lazy], MusicGen.toy(), 20, 1, lambda *_, **__: None)


def test_both_codecs_are_timed() -> None:
    for times in measure_codec(MusicGen.toy(2), 2, 5, 3):
        assert len(times) == 3
        assert min(times) > 0


def measured(name: str, precision: str, *wall: float) -> Measured:
    return Measured(name, precision, False, 1503, wall, wall, 4, 50, 8, 0.0)


SETTING = decode_rows.Setting("mini", 1, 1503, 30.0, 30.0, "cpu")


def test_targets_are_met_and_missed() -> None:
    sides = [
        measured("transformers", "float32", 10.0, 11.0),
        measured("transformers", "bfloat16", 12.0, 12.0),
        measured("musictune", "float32", 4.9, 6.0),
        measured("musictune", "int8", 2.0, 2.0),
    ]
    rows = [row for row in decode_rows.model_rows(SETTING, sides) if row.unit == "ms"]
    found = {(row.case.partition(":")[0], row.peer_name): (row.ratio, row.met) for row in rows}
    assert found == {
        ("mini x 1, float32", "transformers float32"): (pytest.approx(10 / 4.9), True),
        ("mini x 1, float32", "transformers bfloat16"): (pytest.approx(12 / 4.9), None),
        ("mini x 1, int8", "transformers float32"): (pytest.approx(5), False),
        ("mini x 1, int8", "transformers bfloat16"): (pytest.approx(6), None),
    }
    assert rows[0].ours == pytest.approx(4.9 / 1503 * 1000)
    short = dataclasses.replace(SETTING, seconds=2.0, music=2.0)
    assert all(row.met is None for row in decode_rows.model_rows(short, sides))


def test_whole_is_music_per_second_beside_the_fastest_peer() -> None:
    sides = [
        measured("transformers", "float32", 10.0),
        measured("transformers", "bfloat16", 12.0),
        measured("musictune", "int8", 2.0),
    ]
    (row,) = decode_rows.whole_rows(SETTING, sides, codec=1.0, peer_codec=5.0)
    assert (row.ours, row.peer, row.ratio) == (10.0, 2.0, 5.0)
    assert row.peer_name == "transformers float32"


def test_the_floor_is_only_judged_where_it_was_asked_for() -> None:
    config = decoder_config(decode_models.find_shape("small"))
    speed = decode_floor.step_bytes(config, 2, 1, 1503, 10) / 0.0002  # a floor of 0.2 ms
    side = measured("musictune", "bfloat16", 1503 * 0.0005)
    for shape, met in (("small", True), ("medium", False), ("mini-8x384", None)):
        setting = dataclasses.replace(SETTING, shape=shape, device="cuda")
        (row,) = decode_rows.floor_rows(setting, [side], config, 10, speed)
        assert (row.ours, row.met) == (pytest.approx(0.4, rel=1e-3), met)


# --- the commands ---


def test_rows_and_sides_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "decode.json"
    options = ["--shape", "toy", "--steps", "12", "--repeats", "2", "--precision", "float32"]
    assert run("--json", str(file), *options) == 0
    document = json.loads(file.read_text(encoding="utf-8"))
    rows = document["rows"]
    assert {"case", "ours", "peer", "peer_name", "ratio", "unit", "target", "met"} <= set(rows[0])
    assert (rows[0]["ours"], rows[0]["met"]) == (1.0, True)
    assert {row["peer_name"] for row in rows if row["unit"] == "ms"} == {
        "transformers float32",
        "transformers bfloat16",
    }
    assert {row["unit"] for row in rows} == {"share", "ms", "MiB", "s", "s/s"}
    sides = {(side["name"], side["precision"]): side for side in document["sides"]}
    assert [side["steps"] for side in sides.values()] == [12] * 3
    assert all(side["held"] > 0 and len(side["cpu"]) == 2 for side in sides.values())
    half, exact = (sides["transformers", each]["cache"] for each in ("bfloat16", "float32"))
    assert 2 * half == exact
    assert document["made_with"]["command"].endswith("--steps 12 --precision float32 --repeats 2")
    said = capsys.readouterr()
    assert "1 of 1 targets met" in said.out
    assert "left open" in said.err


def test_another_model_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = decode_sides.ours

    def other(model: MusicGen, *arguments: object) -> Side:
        damaged = MusicGen.toy()
        torch.nn.init.normal_(damaged.backbone.lm_heads[0].weight)
        return real(damaged, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(decode_sides, "ours", other)
    file = tmp_path / "decode.json"
    options = ["--shape", "toy", "--steps", "12", "--repeats", "1", "--precision", "float32"]
    assert run("--json", str(file), *options) == 0
    row = json.loads(file.read_text(encoding="utf-8"))["rows"][0]
    assert row["ours"] < 1
    assert row["met"] is False


def test_the_command_is_told_without_paths() -> None:
    wanted = Wanted(shapes=("small",), steps=50, batch=8, audiocraft=Path("/x"), compiled=True)
    assert wanted.command == (
        "musictune bench decode --json FILE --shape small --steps 50 --batch 8 --audiocraft PATH "
        "--compiled"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shape", "huge"], "huge"),
        (["--precision", "int3"], "int3"),
        (["--batch", "0"], "batch"),
        (["--steps", "3", "--shape", "toy"], "3 steps"),
        (["--seconds", "0"], "--seconds 0"),
        (["--seconds", "nan"], "--seconds nan"),
        (["--seconds", "11", "--shape", "toy"], "10 seconds at most"),
        (["--repeats", "0"], "repeats"),
        (["--json", "."], "is a folder"),
        (["--json", "no/such/folder/x.json"], "does not exist"),
        (["--audiocraft", "nowhere"], "nowhere"),
        (["--audiocraft", ".", "--shape", "toy", "--seconds", "2"], "pip download"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_what_cannot_be_decoded_is_said_in_one_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--json" not in arguments:
        arguments = ["--json", "rows.json", *arguments]
    assert run(*arguments) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_decoding_is_measured_on_cuda(tmp_path: Path) -> None:
    file = tmp_path / "decode.json"
    options = ["--shape", "mini-8x384", "--steps", "60", "--repeats", "2", "--device", "cuda"]
    assert run("--json", str(file), *options) == 0
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["made_with"]["bytes_per_second"] > 1e11
    shares = [row["ours"] for row in document["rows"] if "floor" in row["case"]]
    assert shares
    assert all(0 < share < 1 for share in shares)
