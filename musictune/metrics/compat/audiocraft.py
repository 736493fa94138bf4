"""audiocraft 1.3.0's objective metrics, to compare with papers on MusicGen and its kin.

Text consistency needs what a CLAP heard in the ordinary way; the other two have listeners of their
own. FAD is not here: audiocraft calls Google's original, which is VGGish and the plain Fréchet
distance.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from musictune.audio import Clip
from musictune.errors import InputError
from musictune.metrics.base import About, Listener, NotComputed, Score
from musictune.metrics.classifier import AstClassifier
from musictune.metrics.embedders.clap import ClapEmbedder
from musictune.metrics.features import Features, comparable
from musictune.metrics.intervals import mean_interval
from musictune.metrics.kl import kl_divergence

Array = np.ndarray
Pairs = Sequence[tuple[int, int]]

ABOUT = {
    "audiocraft_text_consistency": About(
        "CLAP text consistency, as audiocraft",
        "Mean cosine of each clip with its prompt; over 10 s the mean of its windows instead of "
        "one at random.",
        "higher",
    ),
    "audiocraft_chroma_cosine": About(
        "chroma cosine, as audiocraft",
        "Share of frames whose strongest pitch class is that of the clip of the same name.",
        "higher",
    ),
    "audiocraft_kld_pq": About(
        "KLD, reference to made, as audiocraft but with AST for PaSST",
        "audiocraft's headline kld: how much the made clips lack of what their references hold; "
        "nats.",
        "lower",
    ),
    "audiocraft_kld_qp": About(
        "KLD, made to reference, as audiocraft but with AST for PaSST",
        "The other direction: how much the made clips hold that their references lack; nats.",
        "lower",
    ),
    "audiocraft_kld_both": About(
        "KLD, sum of both directions, as audiocraft but with AST for PaSST",
        "Both directions added up; nats.",
        "lower",
    ),
}
"""What is computed here, by name."""

_EPSILON = 1e-6
_SEGMENT, _LEAST = 10.0, 0.15  # seconds
_WINDOW, _HOP, _CLASSES = 2**14, 2**12, 12
_NO_PAIRS = NotComputed("no made clip has the name of a reference clip")


def text_consistency(
    embedder: ClapEmbedder, made: Features, captions: Sequence[str]
) -> Score | NotComputed:
    """Mean over clips of the cosine between clip and prompt.

    Reproduced: for clips up to 10 s all of it, repeats of short clips included.

    Not reproduced: longer clips are cut to 10 s at random there, and scores differ from run to
    run; here the mean over all windows is taken, which is what that choice gives on average.
    Prompts over 77 tokens are cut there. Resampling is julius' there, soxr's here. Clips without
    a prompt are left out.

    Args:
        embedder: what heard; papers use ``music_audioset_epoch_15_esc_90.14``.
        made: what it heard.
        captions: the prompt of each clip, empty where there is none.

    Raises:
        InputError: another embedder's features, or not one caption for each clip.
    """
    if made.key and made.key != embedder.key:
        raise InputError(f"embeddings are of {made.key}, not of {embedder.key}; hear them again")
    if len(captions) != len(made):
        raise InputError(f"{len(captions)} captions for {len(made)} clips; give one for each")
    told = [i for i, caption in enumerate(captions) if caption]
    if not told:
        return NotComputed("no prompt is known of any clip")
    texts = embedder.text([captions[i] for i in told]).double().numpy()
    values = [_cosines(made[i], text).mean() for i, text in zip(told, texts, strict=True)]
    return Score(*mean_interval(np.array(values)), n=len(values), better="higher")


class ChromaListener(Listener):
    """The strongest pitch class of each frame, as audiocraft's chroma metric sees it.

    Reproduced: mono; Hann windows of 2¹⁴ samples every 2¹², the first and last half filled by
    reflection; power; librosa's 12 chroma filters without tuning; 1 at the largest, 0 elsewhere,
    in silence at C; a clip shorter than a window padded with silence on both sides; as many
    frames as hops begun, so that a clip of whole hops loses its last.

    Not reproduced: counting frames at the file's rate where another is used for the chroma, which
    is a fault there; resampling by julius.

    Args:
        sample_rate: Hz; MusicGen's papers use 32000.
    """

    whole = True

    def __init__(self, sample_rate: int = 32_000) -> None:
        self.sample_rate = sample_rate
        self.key = f"audiocraft-chroma-{sample_rate}"

    def hear(self, clip: Clip) -> Array:
        """``(frames, 12)`` float32, one 1 in each row."""
        wave = clip.mono().resample(self.sample_rate).wave[0]
        frames = -(-len(wave) // _HOP)
        lacking = max(_WINDOW - len(wave), 0)
        wave = torch.nn.functional.pad(wave, (lacking // 2, lacking - lacking // 2))
        spectrum = torch.stft(
            wave, _WINDOW, _HOP, window=torch.hann_window(_WINDOW), return_complex=True
        )
        chroma = _chroma_filters(self.sample_rate) @ spectrum.abs().square()
        strongest = chroma.argmax(0)[:frames]
        return torch.nn.functional.one_hot(strongest, _CLASSES).float().numpy()


def chroma_cosine(made: Features, reference: Features, pairs: Pairs) -> Score | NotComputed:
    """Mean over all frames of all pairs of the cosine between chroma frames.

    Reproduced: long pairs count more. Not reproduced: audiocraft refuses pairs of other lengths;
    here the frames both have are compared.

    Args:
        made, reference: what a `ChromaListener` heard.
        pairs: indices of clips that belong together.

    Raises:
        InputError: other listeners.
    """
    comparable(made, reference)
    if not pairs:
        return _NO_PAIRS
    values, frames = [], []
    for one, other in pairs:
        count = min(len(made[one]), len(reference[other]))
        values.append(_cosines(made[one][:count], reference[other][:count]).mean())
        frames.append(count)
    return Score(*mean_interval(np.array(values), np.array(frames)), n=len(values), better="higher")


class SegmentListener(Listener):
    """Class probabilities in segments of 10 s that do not overlap, as for audiocraft's KLD.

    Reproduced: a rest of more than 0.15 s is a segment too, not filled up by repetition; each
    segment's softmax.

    Not reproduced: the classifier, which is PaSST there; AST reads a fixed length and pads what is
    missing with a constant.

    Args:
        classifier: what hears.
    """

    whole = True

    def __init__(self, classifier: AstClassifier) -> None:
        self.classifier = classifier
        self.key = f"audiocraft-segments-{classifier.key}"

    def hear(self, clip: Clip) -> Array:
        """``(segments, classes)`` float32.

        Raises:
            InputError: the clip has no segment, or the answer is not finite.
        """
        rate = self.classifier.sample_rate
        wave = clip.mono().resample(rate).wave[0]
        segments = [
            segment.numpy()
            for segment in wave.split(round(_SEGMENT * rate))
            if len(segment) > _LEAST * rate
        ]
        if not segments:
            raise InputError(
                f"{clip.source or 'a clip'} of {clip.seconds:g} s is too short for audiocraft's "
                f"KLD; give clips of more than {_LEAST} s"
            )
        rows = self.classifier.embed(segments)
        if not torch.isfinite(rows).all():
            raise InputError(
                f"classifier {self.classifier.name} answers with numbers that are not finite for "
                f"{clip.source or 'a clip'}; choose another --classifier"
            )
        return rows.numpy()


def kld(made: Features, reference: Features, pairs: Pairs) -> dict[str, Score | NotComputed]:
    """Divergences between segments at the same place of paired clips, in nats.

    ``kld_pq``, also called ``kld`` there, is D(reference ‖ made); ``kld_qp`` the other direction;
    ``kld_both`` their sum.

    Reproduced: 1e-6 is added to the distribution behind the bar; all segments count alike. Not
    reproduced: audiocraft refuses pairs of other lengths; here the segments both have are compared.

    Args:
        made, reference: what a `SegmentListener` heard.
        pairs: indices of clips that belong together.

    Raises:
        InputError: other listeners.
    """
    comparable(made, reference)
    names = ("audiocraft_kld_pq", "audiocraft_kld_qp", "audiocraft_kld_both")
    if not pairs:
        return dict.fromkeys(names, _NO_PAIRS)
    values, segments = np.empty((len(pairs), 3)), np.empty(len(pairs))
    for index, (one, other) in enumerate(pairs):
        count = min(len(made[one]), len(reference[other]))
        p, q = made[one][:count], reference[other][:count]
        lacking, beyond = kl_divergence(q, p, _EPSILON), kl_divergence(p, q, _EPSILON)
        values[index] = lacking.mean(), beyond.mean(), (lacking + beyond).mean()
        segments[index] = count
    return {
        name: Score(*mean_interval(column, segments), n=len(pairs), better="lower")
        for name, column in zip(names, values.T, strict=True)
    }


def _cosines(rows: Array, others: Array) -> Array:
    """``(rows,)`` cosine of each row with the other's, or with the one vector."""
    rows, others = np.asarray(rows, np.float64), np.asarray(others, np.float64)
    lengths = np.linalg.norm(rows, axis=-1) * np.linalg.norm(others, axis=-1)
    return np.asarray((rows * others).sum(-1) / np.maximum(lengths, 1e-8))


@functools.lru_cache(maxsize=4)
def _chroma_filters(rate: int) -> Tensor:
    import librosa

    filters = librosa.filters.chroma(sr=rate, n_fft=_WINDOW, tuning=0, n_chroma=_CLASSES)
    return torch.from_numpy(filters).float()
