"""Labels that nobody gave: which of an encoder's clusters each clip is in."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from musictune import console
from musictune.errors import InputError
from musictune.models.classifier import Classifier, mean_tokens

_PER_GROUP = 4  # clips for each direction and each cluster; fewer say nothing of either
_LEAST = 2 * _PER_GROUP
_SAME = "the clips sound all the same to this encoder; give different ones"


def pseudo_labels(
    model: Classifier, heard: Sequence[Tensor], dims: int = 128, clusters: int = 32, seed: int = 0
) -> Tensor:
    """``(clips,)`` int64: which cluster of the encoder's features each clip is in, from 0 on.

    As UnFuSeD (Seth et al. 2023, arXiv 2303.05668) makes them: whitened features at length 1 in
    k-means. Ours: the features are means over tokens, and there are at least four clips for each
    principal component and for each cluster, so that few clips get fewer of both. (With as many
    components as clips, whitening would put all clips equally far from each other.)

    Args:
        model: an encoder; its head is not asked.
        heard: what ``model.front.hear`` gave of each clip, of any length.
        dims: principal components, at most.
        clusters: at most.
        seed: of where k-means starts.

    Raises:
        InputError: fewer than 8 clips, or clips that the encoder cannot tell apart.
    """
    if len(heard) < _LEAST:
        raise InputError(
            f"{len(heard)} clips are too few to cluster; give at least {_LEAST}, or switch unfused "
            "off"
        )
    found = features(model, heard)
    points = F.normalize(whitened(found, min(dims, len(heard) // _PER_GROUP)), dim=1)
    count = min(clusters, len(heard) // _PER_GROUP)
    if count < clusters:
        console.note(f"{len(heard)} clips are clustered into {count}, not {clusters}")

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    means = KMeans(count, n_init=10, random_state=seed)
    with warnings.catch_warnings():  # of clips that are there twice
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = torch.as_tensor(means.fit_predict(points.numpy()), dtype=torch.int64)
    kinds, labels = labels.unique(return_inverse=True)
    if len(kinds) < 2:
        raise InputError(_SAME)
    return labels


@torch.no_grad()
def features(model: Classifier, heard: Sequence[Tensor]) -> Tensor:
    """``(clips, width)`` float32 on the CPU: means over tokens, then over a clip's windows."""
    training, rows = model.training, []
    model.train(False)
    try:
        for clip in console.track(heard, "listening", len(heard)):
            inputs, lengths = model.front.inputs(list(model.windows(clip)), model.steps)
            rows.append(mean_tokens(*model.states(inputs, lengths)).float().mean(0).cpu())
    finally:
        model.train(training)
    return torch.stack(rows)


def whitened(found: Tensor, dims: int) -> Tensor:
    """``(clips, width)`` to ``(clips, dims or fewer)`` float64: principal components of variance 1.

    Directions in which all clips are the same but for rounding are left out.

    Raises:
        InputError: there is no other.
    """
    from sklearn.decomposition import PCA

    exact = found.double().cpu()
    # More than this is rounding of float32.
    least = 1e-5 * float(exact.abs().max())
    if float(exact.std(0, correction=0).max()) <= least:
        raise InputError(_SAME)
    pca = PCA(min(dims, *exact.shape), whiten=True, svd_solver="full")
    points = torch.from_numpy(pca.fit_transform(exact.numpy()))
    return points[:, torch.from_numpy(pca.explained_variance_).sqrt() > least]
