"""What a run sets aside in a file comes back as it was."""

import shutil
from pathlib import Path

import pytest
import torch
from support.tolerances import FLOAT64_SUMS, close

from mace_pl.errors import UserError
from mace_pl.methods.edit import ConceptSums, Pairs, SumsOnDisk, summed
from mace_pl.training.tensor_store import TensorStore


def test_tensors_and_rows_are_those_that_were_added() -> None:
    tensors = [
        torch.randn(3, 5, 2),
        torch.randn(7, 4, dtype=torch.float64),
        torch.arange(6).view(2, 3).T,  # not contiguous
        torch.randn(2, 3).bfloat16(),
        torch.tensor([[True], [False]]),
    ]
    store = TensorStore()
    assert [store.add(tensor) for tensor in tensors] == [0, 1, 2, 3, 4] and len(store) == 5
    for number in (2, 0, 4, 1, 3):
        found = store[number]
        assert found.dtype == tensors[number].dtype and torch.equal(found, tensors[number])
        for i, row in enumerate(tensors[number]):
            assert torch.equal(store.row(number, i), row)
    store.add(torch.ones(2))  # after reading too
    assert torch.equal(store[5], torch.ones(2)) and torch.equal(store[0], tensors[0])
    with pytest.raises(IndexError, match="row 3 of 3"):
        store.row(0, 3)


def test_a_store_leaves_no_files() -> None:
    store = TensorStore()
    store.add(torch.ones(2))
    folder, found = Path(store.folder.name), store[0]
    assert [path.name for path in folder.iterdir()] == ["0.safetensors"]
    del store
    assert not folder.exists() and torch.equal(found, torch.ones(2))


def test_what_cannot_be_written_is_named() -> None:
    store = TensorStore()
    shutil.rmtree(store.folder.name)
    with pytest.raises(UserError, match=r"cannot write to .* \(.+\)\. Free some space, or set TMPDIR"):
        store.add(torch.ones(2))
    assert len(store) == 0


def test_statistics_come_back_by_target() -> None:
    sums = {name: ConceptSums(*(torch.randn(5, 5, dtype=torch.float64) for _ in range(3))) for name in "abc"}
    kept = SumsOnDisk()
    for name, own in sums.items():
        kept.add(name, own)
    assert list(kept) == list(sums) and len(kept) == 3
    for name in "bac":
        assert all(torch.equal(getattr(kept[name], term), matrix) for term, matrix in vars(sums[name]).items())
    assert torch.equal(summed(kept.values()).G, sums["a"].G + sums["b"].G + sums["c"].G)
    assert torch.equal(kept.total.G, summed(kept.values()).G)


@pytest.mark.parametrize("pooled", [False, True])
def test_few_tokens_are_kept_in_place_of_their_sums(pooled: bool) -> None:
    kept = SumsOnDisk()
    pairs = {name: Pairs(*(torch.randn(3, 5) for _ in range(4 if pooled else 2))) for name in "ab"}
    whole = Pairs(*(torch.randn(11, 5) for _ in range(4 if pooled else 2)))
    assert pairs["a"].few and not whole.few
    for name, own in pairs.items():
        kept.add(name, own)
    kept.add("c", whole.sums())
    sums = {name: own.sums() for name, own in (pairs | {"c": whole}).items()}
    for name, own_sums in sums.items():
        assert all(torch.equal(getattr(kept[name], term), matrix) for term, matrix in vars(own_sums).items())
    F, G = (torch.zeros(5, 5, dtype=torch.float64) for _ in range(2))
    for own in (*pairs.values(), whole):
        for e, g in zip(own.target.double(), own.anchor.double(), strict=True):
            F, G = F + torch.outer(e, e), G + torch.outer(g, e)
    assert kept.total.pairs == 17 and (kept.total.F_pooled.numel() > 0) == pooled
    close([kept.total.F, kept.total.G], [F, G], FLOAT64_SUMS)
    close(kept.total.F_pooled, sum(own.F_pooled for own in sums.values()), FLOAT64_SUMS)
