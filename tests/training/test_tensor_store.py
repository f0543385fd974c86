"""What a run sets aside in a file comes back as it was."""

import pytest
import torch

from mace_pl.methods.edit import ConceptSums, SumsOnDisk, summed
from mace_pl.training.tensor_store import Filed


def test_tensors_and_rows_are_those_that_were_added() -> None:
    tensors = [torch.randn(3, 5, 2), torch.randn(7, 4, dtype=torch.float64), torch.arange(6).view(2, 3).T]
    filed = Filed()
    assert [filed.add(tensor) for tensor in tensors] == [0, 1, 2] and len(filed) == 3
    for number in (2, 0, 1):
        found = filed[number]
        assert found.dtype == tensors[number].dtype and torch.equal(found, tensors[number])
        for i, row in enumerate(tensors[number]):
            assert torch.equal(filed.row(number, i), row)
    filed.add(torch.ones(2))  # after reading too
    assert torch.equal(filed[3], torch.ones(2)) and torch.equal(filed[0], tensors[0])
    with pytest.raises(IndexError, match="row 3 of 3"):
        filed.row(0, 3)


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def seek(self, *_: object) -> int:
            return 0

        def write(self, _: bytes) -> None:
            raise OSError("no space left on device")

    filed = Filed()
    monkeypatch.setattr(filed, "file", Full())
    with pytest.raises(
        ValueError, match=r"cannot write to .* \(no space left on device\)\. Free some space, or set TMPDIR"
    ):
        filed.add(torch.ones(2))


def test_statistics_come_back_by_target() -> None:
    sums = {name: ConceptSums(*(torch.randn(5, 5, dtype=torch.float64) for _ in range(3))) for name in "abc"}
    kept = SumsOnDisk()
    for name, own in sums.items():
        kept.add(name, own)
    assert list(kept) == list(sums) and len(kept) == 3
    for name in "bac":
        assert all(torch.equal(getattr(kept[name], term), matrix) for term, matrix in vars(sums[name]).items())
    assert torch.equal(summed(kept.values()).G, sums["a"].G + sums["b"].G + sums["c"].G)
