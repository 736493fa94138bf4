"""Direct preference optimisation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from musictune.errors import InputError
from musictune.training.objectives.base import Compared, PairObjective
from musictune.training.objectives.terms import checked_number, log_ratios, preferred


class DPO(PairObjective):
    """DPO (Rafailov et al., arXiv 2305.18290): the log-ratio to the reference is the reward.

    The loss of a pair is ``-log sigmoid(beta * margin)``, the margin being the log-ratio of policy
    to reference of the chosen clip minus that of the rejected one, of whole clips in nats.

    Args:
        beta: how dear the distance from the reference is: the loss has gone from log 2 to 0.05
            once the margin is 3 / beta nats, after which a pair teaches little. Clips of thousands
            of tokens get there by a few hundredths of a nat per token, so 0.1 (the paper's, for
            text) lets each token move less the longer the clips are.
        label_smoothing: the share of labels thought to be wrong, below 0.5. The loss is then
            cross-entropy with soft labels ("conservative DPO", in a note by E. Mitchell), which is
            least at a finite margin.
        robust: correct for wrong labels instead so that the loss is, on average over them, that of
            the right labels (Chowdhury et al., arXiv 2403.00409). It has no lower bound: with a
            growing margin it goes on falling by ``label_smoothing / (1 - 2 label_smoothing)``
            times beta per nat.

    Raises:
        InputError: a value out of its range.
    """

    name = "dpo"

    def __init__(
        self, beta: float = 0.1, label_smoothing: float = 0.0, robust: bool = False
    ) -> None:
        self.beta = checked_number("beta", beta, above=0)
        self.label_smoothing = checked_number(
            "label_smoothing", label_smoothing, least=0, below=0.5
        )
        self.robust = robust
        if robust and label_smoothing == 0:
            raise InputError(
                "robust True needs the share of wrong labels; set label_smoothing, such as 0.1"
            )

    def loss(self, pairs: Compared) -> Tensor:
        chosen, rejected = log_ratios(pairs)
        margin = self.beta * (chosen - rejected)
        if not self.robust:
            return preferred(margin, self.label_smoothing)
        wrong = self.label_smoothing
        right = -(1 - wrong) * F.logsigmoid(margin) + wrong * F.logsigmoid(-margin)
        return right / (1 - 2 * wrong)
