"""A penalty that is averaged in its own way: by the paper in loops, in its limits, as an override, and refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from algorithms.parts.aggregates import SeqMeanTokenMean, TokenMean
from algorithms.parts.penalties import Kl
from harness.core.algorithm import Algorithm, describe_slot, difference, leaves, override
from harness.core.errors import UsageError
from harness.core.registry import algorithm
from tests.algorithms.batches import Batch, advantages, loss_and_gradient, make_batch, ragged
from tests.algorithms.test_oracles import agree, lists
from tests.oracles import loops

few = settings(max_examples=25, deadline=None)
KL = {"coef": 0.3, "aggregate": "token-mean"}


@few
@given(batch=ragged)
def test_gspo_with_a_token_mean_of_the_kl(batch: Batch) -> None:
    """The policy term by response, the KL term by token, as verl's GSPO."""
    record = override(algorithm("gspo"), {"penalties.kl": {**KL, "clamp": False}})
    adv = advantages(record, batch)
    loss, grad, _ = loss_and_gradient(record, batch, adv)
    new, old, ref = (lists(x, batch.mask) for x in (batch.logp, batch.old_logp, batch.ref_logp))
    rows = [row[0] if row else 0.0 for row in lists(adv, batch.mask)]
    policy, grads = loops.gspo_loss(new, old, rows, 3e-4, 4e-4)
    kl, kl_grads = loops.k3_token_mean(new, ref)
    np.testing.assert_allclose(loss.item(), policy + 0.3 * kl, rtol=1e-9, atol=1e-12)
    both = [np.asarray(a) + 0.3 * np.asarray(b) for a, b in zip(grads, kl_grads, strict=True)]
    agree(grad, batch.mask, both)


@pytest.mark.parametrize("name", ["grpo", "gfpo", "gspo_verl_kl"])
def test_naming_the_algorithms_own_aggregate_changes_nothing(name: str) -> None:
    record, batch = algorithm(name), make_batch(3, groups=3, siblings=8)
    own = [p.model_copy(update={"aggregate": record.aggregate}) for p in record.penalties]
    none = [p.model_copy(update={"aggregate": None}) for p in record.penalties]
    if "selection.k" in leaves(record):
        record = override(record, {"selection.k": 3})
    adv = advantages(record, batch)
    a, b = (loss_and_gradient(record.model_copy(update={"penalties": tuple(p)}), batch, adv) for p in (own, none))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


def test_verls_gspo_averages_its_kl_by_token() -> None:
    flat = leaves(algorithm("gspo_verl_kl"))
    assert (flat["aggregate"], flat["penalties.kl.aggregate"]) == ("seq-mean-token-mean", "token-mean")
    assert flat["penalties.kl.aggregate.scope"] == "batch"
    batch = make_batch(5, groups=3, siblings=8)
    same = override(algorithm("gspo_verl_kl"), {"penalties.kl.aggregate": None, "penalties.kl.coef": 0.5})
    other = override(algorithm("gspo_verl_kl"), {"penalties.kl.coef": 0.5})
    adv = advantages(same, batch)
    gap = loss_and_gradient(same, batch, adv)[1] - loss_and_gradient(other, batch, adv)[1]
    assert float(gap.abs().max()) > 1e-4


def test_it_is_an_override_like_any_other() -> None:
    base = algorithm("grpo")
    by_kind = override(base, {"penalties.kl.aggregate": "token-mean"})
    assert by_kind.penalties[0].aggregate == TokenMean()
    deeper = override(base, {"penalties.kl.aggregate": "token-mean", "penalties.kl.aggregate.scope": "group"})
    assert deeper.penalties[0].aggregate == TokenMean(scope="group")
    assert deeper == override(base, {"penalties.kl.aggregate": {"kind": "token-mean", "scope": "group"}})
    assert difference(base, deeper) == {
        "penalties.kl.aggregate": (None, "token-mean"),
        "penalties.kl.aggregate.scope": (None, "group"),
    }
    assert Algorithm.model_validate(deeper.model_dump(mode="json")) == deeper
    assert override(deeper, {"penalties.kl.aggregate": None}) == base
    assert "aggregate=token-mean(scope=group)" in describe_slot(deeper, "penalties")
    assert Kl(aggregate=SeqMeanTokenMean(eps=1e-8)).aggregate is not None


@pytest.mark.parametrize(
    ("base", "changes", "word"),
    [
        ("ppo", {"penalties.kl.aggregate": "token-mean"}, "stays per token"),
        ("grpo", {"penalties.kl.aggregate": "token-meen"}, "did you mean token-mean"),
        ("grpo", {"penalties.kl.aggregate": 3}, "a part is its kind"),
        ("grpo", {"penalties.kl.aggregate.scope": "group"}, "no such path"),
        ("gspo_verl_kl", {"penalties.kl.aggregate.scope": "token"}, "Input should be"),
        ("gspo_verl_kl", {"penalties.kl.aggregate": "token-mean"}, "changes nothing"),
    ],
)
def test_what_cannot_be_meant_is_refused(base: str, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        override(algorithm(base), changes)
