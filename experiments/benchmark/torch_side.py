"""Prompt tuning in PyTorch, by PEFT and as in the paper's code, for comparison."""

from collections.abc import Sequence

import numpy as np
import peft
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from wayward_jax.tasks import Encoded

IGNORED = -100
# The paper pads inputs to this many tokens, one of which is BOS, whose place the prompt takes.
PAPER_LENGTH = 128

Model = torch.nn.Module


def make_batch(
    examples: Sequence[Encoded], labels: Sequence[int], length: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Makes token ids, targets and attention mask `[B, T]`, padded to `length` or longer."""
    pairs = [(e.contexts[y], e.continuations[y]) for e, y in zip(examples, labels, strict=True)]
    ids = [torch.tensor([*context, *continuation]) for context, continuation in pairs]
    targets = [torch.tensor([*[IGNORED] * len(a), *b]) for a, b in pairs]
    mask = [torch.ones(len(x), dtype=torch.long) for x in ids]
    for rows, fill in ((ids, 0), (targets, IGNORED), (mask, 0)):
        missing = max(0, length - len(rows[0]))
        rows[0] = torch.cat([rows[0], torch.full((missing,), fill)])
    return (
        pad_sequence(ids, batch_first=True),
        pad_sequence(targets, batch_first=True, padding_value=IGNORED),
        pad_sequence(mask, batch_first=True),
    )


class Peft:
    """Prompt tuning by Hugging Face PEFT; batches are padded to their longest example."""

    def __init__(self, model: Model, prompt: np.ndarray, steps: int) -> None:
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(prompt))
        self._model = peft.get_peft_model(model, config).eval()  # without dropout, as here
        (self._prompt,) = (p for p in self._model.parameters() if p.requires_grad)
        with torch.no_grad():
            self._prompt.copy_(torch.tensor(prompt))
        self._optimizer = Optimizer(self._prompt, steps)

    def step(self, examples: Sequence[Encoded], labels: Sequence[int]) -> float:
        """Takes a step, and returns the loss before it, a mean over tokens."""
        ids, targets, mask = make_batch(examples, labels)
        loss = self._model(input_ids=ids, attention_mask=mask, labels=targets).loss
        self._optimizer.step(loss)
        return loss.item()


class PaperStyle:
    """Prompt tuning as in the paper's code.

    Inputs are padded to 128 tokens, all logits are computed, and scoring takes a pass per label.
    """

    def __init__(self, model: Model, prompt: np.ndarray, steps: int) -> None:
        self._model = model.eval().requires_grad_(False)
        self._prompt = torch.nn.Parameter(torch.tensor(prompt))
        self._optimizer = Optimizer(self._prompt, steps)

    def _losses(self, examples: Sequence[Encoded], labels: Sequence[int]) -> torch.Tensor:
        """Computes the mean NLL `[B]` over the tokens of each continuation."""
        ids, targets, mask = make_batch(examples, labels, PAPER_LENGTH - 1)
        tokens = self._model.get_input_embeddings()(ids)
        prompts = self._prompt.to(tokens.dtype).expand(len(ids), -1, -1)
        embedded = torch.cat([prompts, tokens], dim=1)
        mask = torch.cat([mask.new_ones(len(ids), len(self._prompt)), mask], dim=1)
        logits = self._model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits
        logits = logits[:, len(self._prompt) - 1 : -1]
        nll = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return nll.view_as(targets).sum(1) / (targets != IGNORED).sum(1)

    def step(self, examples: Sequence[Encoded], labels: Sequence[int]) -> float:
        """Takes a step, and returns the loss before it."""
        loss = self._losses(examples, labels).mean()
        self._optimizer.step(loss)
        return loss.item()

    @torch.no_grad()
    def nll(self, examples: Sequence[Encoded], batch_size: int = 32) -> np.ndarray:
        """Computes the loss of every label, `[E, C]`, in one pass per label."""
        n_labels = len(examples[0].continuations)
        batches = [examples[i : i + batch_size] for i in range(0, len(examples), batch_size)]
        by_label = [
            torch.cat([self._losses(batch, [label] * len(batch)) for batch in batches])
            for label in range(n_labels)
        ]
        return torch.stack(by_label, dim=1).float().cpu().numpy()


class Optimizer:
    """AdamW without weight decay; linear decay to 0; the norm of the gradient is clipped to 1."""

    def __init__(self, prompt: torch.nn.Parameter, steps: int) -> None:
        self._prompt = prompt
        self._adamw = torch.optim.AdamW([prompt], lr=0.01, weight_decay=0)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._adamw, lambda i: 1 - i / steps)

    def step(self, loss: torch.Tensor) -> None:
        self._adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([self._prompt], 1.0)
        self._adamw.step()
        self._schedule.step()
