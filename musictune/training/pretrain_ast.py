"""Training the bundled audio encoder: which families sound and in which style, from a spectrogram.

An Audio Spectrogram Transformer (Gong et al. 2021, arXiv 2104.01778), small enough to be trained
from nothing on a CPU. Its own head says families and styles. What else the composer knows of a
clip (each instrument, texture, moods) is asked of the mean over its tokens by a second head that is
thrown away: methods that tune the encoder for other labels read that mean.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from musictune import audio, console
from musictune.compose.instruments import DRUMS
from musictune.errors import InputError
from musictune.files import publish_file
from musictune.models.front import Spectrogram
from musictune.training.pretrain import Corpus, Pretraining, PretrainSettings
from musictune.training.text import fact_table

Drawn = tuple[Tensor, Tensor, Tensor]

FRAMES_PER_SECOND = 100
_NEPER = float(np.log(10) / 10)  # of power, for a decibel
_FLOOR = -15.9424  # what the extractor says of silence: ln 2^-23
_RIDGE = 1e-3  # of variances of patches, the least of ours 7e-3
_POOL_FROM = 64  # clips; below that starting processes takes longer than they save
_SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "patch_size": 16,
    "frequency_stride": 16,
    "time_stride": 16,
    "max_length": 512,
    "num_mel_bins": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.06,
    "layer_norm_eps": 1e-6,  # 1e-12 is nothing beside the rounding of half precision
}


class AstPretraining(Pretraining):
    """Learn a small ``ASTForAudioClassification`` from the composer's truth, several labels a clip.

    Args:
        settings: how long and how fast.
        shape: fields of ``ASTConfig`` in place of ours.
        batch_size: clips per step.
        held_out: how many clips at the end of the corpus are never trained on; what the export
            says of them is printed.
        worse: how often a clip is made worse (see `made_worse`).
        mix: how often, at the end of the training, a clip is drawn together with another, as if
            both sounded; the truth is then that of both. It rises from never.
        patchout: share of the patches left out at the start of the training, falling to none at
            its end (Koutini et al. 2022, arXiv 2110.05069, where it stays the same).
        workers: processes that compute spectrograms.
    """

    def __init__(
        self,
        settings: PretrainSettings,
        shape: dict[str, Any] | None = None,
        batch_size: int = 16,
        held_out: int = 350,
        worse: float = 0.5,
        mix: float = 0.2,
        patchout: float = 0.5,
        workers: int = 2,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.shape = _SHAPE | (shape or {})
        self.batch_size = batch_size
        self.held_out = held_out
        self.worse = worse
        self.mix = mix
        self.patchout = patchout
        self.workers = workers

    def open(self, corpus: Corpus) -> None:
        """Hear the whole corpus once (kept beside it) and build the network.

        Raises:
            InputError: a clip's truth is missing, clips are of different lengths or shorter than
                the network hears, or none is left to train on.
        """
        from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

        self.count = len(corpus.rows) - self.held_out
        if self.count < self.batch_size:
            raise InputError(
                f"corpus {corpus.folder} has {len(corpus.rows)} clips of which {self.held_out} are "
                f"held out; a batch needs {self.batch_size}: compose more or lower held_out"
            )
        self.labels, self.styles, self.truth = label_table(corpus)
        facts, names = fact_table(corpus.rows)
        self.facts = facts[: self.count]
        frames, bands = self.shape["max_length"], self.shape["num_mel_bins"]
        extractor = ASTFeatureExtractor(num_mel_bins=bands, max_length=frames)
        self.heard = _hear(corpus, bands, self.workers)
        if self.heard.shape[1] < frames:
            raise InputError(
                f"corpus {corpus.folder} has clips of {self.heard.shape[1] / 100:g} s and the "
                f"network hears {frames / 100:g} s; compose longer ones or lower shape.max_length"
            )
        # A part of the clips says as much of mean and deviation as all of them.
        some = self.heard[: self.count][:: max(1, self.count // 500)].float()
        extractor.mean, extractor.std = round(float(some.mean()), 4), round(float(some.std()), 4)
        self.front = Spectrogram(extractor)
        torch.manual_seed(self.settings.seed)  # the weights it starts from are part of the recipe
        config = ASTConfig(
            **self.shape,
            num_labels=len(self.labels),
            id2label=dict(enumerate(self.labels)),
            label2id={label: number for number, label in enumerate(self.labels)},
            problem_type="multi_label_classification",
        )
        self.network = ASTForAudioClassification(config)
        embeddings = self.network.base_model.embeddings
        for table in (embeddings.position_embeddings, embeddings.cls_token):
            torch.nn.init.trunc_normal_(table, std=0.02)  # transformers begins with zeros
        torch.nn.init.trunc_normal_(embeddings.distillation_token, std=0.02)
        self.ask = torch.nn.Linear(config.hidden_size, len(names))
        with torch.no_grad():  # from how often each is true
            self.network.classifier.dense.bias.copy_(_log_odds(self.truth[: self.count]))
            self.ask.bias.copy_(_log_odds(self.facts))
        self._whiten(embeddings.patch_embeddings.projection)
        embeddings.register_forward_hook(self._thinned)

    def batch(self, rng: np.random.Generator) -> Drawn:
        """``(clips, frames, bands)`` normalised and made worse, ``(clips, labels)`` and facts."""
        frames = self.shape["max_length"]
        chosen = rng.integers(self.count, size=self.batch_size)
        heard = self._cropped(chosen, rng)
        labels, facts = self.truth[chosen], self.facts[chosen]
        mixed = torch.from_numpy(rng.random(self.batch_size) < self.mix * self.progress)
        if mixed.any():
            others = rng.integers(self.count, size=int(mixed.sum()))
            share = torch.from_numpy(rng.uniform(0.3, 0.7, (len(others), 1, 1))).float()
            first, second = 2 * share.log(), 2 * (1 - share).log()
            other = self._cropped(others, rng)
            heard[mixed] = torch.logaddexp(heard[mixed] + first, other + second)
            labels[mixed] = torch.maximum(labels[mixed], self.truth[others])
            facts[mixed] = torch.maximum(facts[mixed], self.facts[others])
        spoilt = torch.from_numpy(rng.random(self.batch_size) < self.worse)
        if spoilt.any():
            heard[spoilt] = made_worse(heard[spoilt], rng)
        inputs, _ = self.front.inputs(list(heard), frames)
        for row in inputs:
            _masked(row, rng)
        return inputs, labels, facts

    def loss(self, batch: Drawn) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of a yes or no for each label, and for each fact of the mean token."""
        inputs, labels, facts = batch
        found = self.network.base_model(inputs)
        logits = self.network.classifier(found.pooler_output).float()
        said = F.binary_cross_entropy_with_logits(logits, labels)
        asked = self.ask(found.last_hidden_state.mean(1)).float()
        known = F.binary_cross_entropy_with_logits(asked, facts)
        # Few labels are true of a clip: the means are small, the weights make up.
        return 10 * said + 10 * known, {
            "labels": float(said.detach()),
            "facts": float(known.detach()),
        }

    def export(self, folder: Path) -> None:
        """A folder that :meth:`Classifier.load` and plain transformers read, in half precision."""
        for what, score in self.held_out_scores().items():
            console.say(f"{what} of clips never trained on, mean average precision: {score:.3f}")
        self.network.half().save_pretrained(folder)
        self.front.extractor.save_pretrained(folder)

    @torch.inference_mode()
    def held_out_scores(self) -> dict[str, float]:
        """Mean average precision of families and of styles, on the start of clips held out.

        Labels that none of them has are left out; without any clip it is empty.
        """
        from musictune.metrics.base import Score
        from musictune.metrics.classification import classification_scores

        self.eval()
        said = []
        frames = self.shape["max_length"]
        for row in self.heard[self.count :, :frames]:
            inputs, _ = self.front.inputs([row.float()], frames)
            said.append(self.network(inputs.to(self.device)).logits.sigmoid().cpu())
        if not said:
            return {}
        found, truth, scores = torch.cat(said), self.truth[self.count :], {}
        for what, part in (("families", slice(self.styles)), ("styles", slice(self.styles, None))):
            score = classification_scores(found[:, part], truth[:, part], True, intervals=False)
            if isinstance(value := score["mean_average_precision"], Score):
                scores[what] = value.value
        return scores

    @torch.no_grad()
    def _whiten(self, projection: torch.nn.Conv2d) -> None:
        """Begin with the principal components of patches, each at variance 1.

        How loud a patch is varies more than all else in it, and hides it from random filters.
        """
        height, width = projection.kernel_size
        rng = np.random.default_rng((self.settings.seed, 1))
        heard = self._cropped(rng.integers(self.count, size=200), rng)
        inputs, _ = self.front.inputs(list(heard), heard.shape[1])
        patches = inputs.transpose(1, 2).unfold(1, height, height).unfold(2, width, width)
        patches = patches.reshape(-1, height * width)
        centred = patches - patches.mean(0)
        variances, components = torch.linalg.eigh(centred.T @ centred / len(centred))
        scaled = (components / (variances + _RIDGE).sqrt()).T.flip(0)[: projection.out_channels]
        projection.weight[: len(scaled)] = scaled.view(-1, 1, height, width)
        assert projection.bias is not None
        projection.bias[: len(scaled)] = -scaled @ patches.mean(0)

    def _cropped(self, chosen: np.ndarray, rng: np.random.Generator) -> Tensor:
        frames = self.shape["max_length"]
        starts = rng.integers(self.heard.shape[1] - frames + 1, size=len(chosen))
        return torch.stack(
            [self.heard[i, s : s + frames] for i, s in zip(chosen, starts, strict=True)]
        ).float()

    def _thinned(self, module: Any, given: Any, tokens: Tensor) -> Tensor | None:
        """Fewer patches while training, the same for all clips of a batch; never the two tokens."""
        share = self.patchout * (1 - self.global_step / self.settings.steps)
        kept = round((1 - share) * (tokens.shape[1] - 2))
        if not self.training or kept >= tokens.shape[1] - 2:
            return None
        order = torch.randperm(tokens.shape[1] - 2, device=tokens.device)[:kept] + 2
        return torch.cat([tokens[:, :2], tokens[:, order.sort().values]], 1)


def label_table(corpus: Corpus) -> tuple[tuple[str, ...], int, Tensor]:
    """The labels of a corpus, where among them styles begin, and ``(clips, labels)`` of 0 or 1.

    Families that sound come first, then styles, each in alphabetical order.

    Raises:
        InputError: a clip without families or style, or a word that is both.
    """
    for row in corpus.rows:
        if not row.get("style") or not (row.get("families") or row.get("has_drums")):
            raise InputError(
                f"{row.get('file_name')} in corpus {corpus.folder} lacks families or a style; "
                "make one: musictune compose"
            )
    sound = [{*row["families"], *([DRUMS] if row.get("has_drums") else [])} for row in corpus.rows]
    families = sorted({family for known in sound for family in known})
    styles = sorted({row["style"] for row in corpus.rows})
    if both := set(families) & set(styles):
        raise InputError(f"{min(both)!r} is a family and a style in corpus {corpus.folder}")
    truth = [
        [float(f in known) for f in families] + [float(s == row["style"]) for s in styles]
        for known, row in zip(sound, corpus.rows, strict=True)
    ]
    return (*families, *styles), len(families), torch.tensor(truth)


def _log_odds(table: Tensor) -> Tensor:
    """Of each column, one clip more of either kind supposed."""
    true = table.sum(0)
    return ((true + 1) / (len(table) - true + 1)).log()


def made_worse(heard: Tensor, rng: np.random.Generator) -> Tensor:
    """Each clip at another level, equalised, blurred in time, and over a floor, by chance.

    What the network will hear has gone through codecs, rooms and microphones, and has no composer
    who leaves everything below a note silent. High bands are lost for a part, as in old or coded
    recordings. All of it is ours.

    Args:
        heard: ``(clips, frames, bands)`` natural logarithms of power.
    """
    clips, _, bands = heard.shape

    def drawn(low: float, high: float, share: float) -> Tensor:
        values = rng.uniform(low, high, (clips, 1, 1)) * (rng.random((clips, 1, 1)) < share)
        return torch.from_numpy(values.astype(np.float32))

    knots = torch.from_numpy(rng.normal(0, 4, (clips, 1, 6)).astype(np.float32)) * drawn(1, 1, 0.6)
    curve = F.interpolate(knots, bands, mode="linear", align_corners=True) + drawn(-14, 6, 1.0)
    lost = torch.arange(bands) >= bands * (1 - drawn(0.1, 0.45, 0.25))
    heard = heard + curve * _NEPER
    blur = drawn(0.2, 1.0, 0.4)
    if (blur > 0).any():
        chosen = blur[:, 0, 0] > 0
        rows = heard[chosen]
        smooth = (rows + rows.roll(1, 1) + rows.roll(-1, 1)) / 3
        heard[chosen] = torch.lerp(rows, smooth, blur[chosen])
    loudest = heard.amax((1, 2), keepdim=True)
    under = drawn(45, 90, 1.0) - drawn(0, 15, 0.3)
    slope = torch.linspace(0.5, -0.5, bands) * drawn(-10, 30, 1.0)  # noises are mostly low
    floor = (loudest + (slope - under) * _NEPER).clamp_min(_FLOOR)
    heard = heard.masked_fill(lost, _FLOOR)
    return torch.maximum(heard, floor)


def _masked(row: Tensor, rng: np.random.Generator) -> None:
    """Two stretches of time and one of bands at the mean, in place (SpecAugment, 1904.08779)."""
    frames, bands = row.shape
    for axis, most in ((0, frames // 8), (0, frames // 8), (1, bands // 6)):
        size = int(rng.integers(most + 1))
        start = int(rng.integers(row.shape[axis] - size + 1))
        row.narrow(axis, start, size).zero_()


def _hear(corpus: Corpus, bands: int, workers: int) -> Tensor:
    """What the front end hears of every clip, ``(clips, frames, bands)`` in half precision."""
    from safetensors.torch import load_file, save_file

    kept = corpus.folder / f"filters-{bands}-{corpus.key}.safetensors"
    if kept.is_file():
        return load_file(kept)["heard"]
    rows = list(console.track(_spectrograms(corpus, bands, workers), "hear", len(corpus.rows)))
    if len({len(row) for row in rows}) > 1:
        raise InputError(
            f"corpus {corpus.folder} has clips of different lengths; compose one with --seconds"
        )
    heard = torch.from_numpy(np.stack(rows))
    with publish_file(kept) as temporary:
        save_file({"heard": heard}, temporary)
    return heard


def _spectrograms(corpus: Corpus, bands: int, workers: int) -> Iterator[np.ndarray]:
    paths = [(str(corpus.path(index)), bands) for index in range(len(corpus.rows))]
    if workers <= 1 or len(paths) < _POOL_FROM:
        yield from map(_spectrogram, paths)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_spectrogram, paths, chunksize=16)


@cache
def _front(bands: int) -> Spectrogram:
    from transformers import ASTFeatureExtractor

    torch.set_num_threads(1)
    return Spectrogram(ASTFeatureExtractor(num_mel_bins=bands))


def _spectrogram(given: tuple[str, int]) -> np.ndarray:
    """An array, for tensors would travel by shared memory."""
    path, bands = given
    found: np.ndarray = _front(bands).hear(audio.read(path)).half().numpy()
    return found
