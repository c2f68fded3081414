import pytest

from spark_hpo.data.plan.row_group_split import in_share

SHARES = ((0.0, 0.8), (0.8, 0.9), (0.9, 1.0))
GROUPS = [(f"country=DE/part-{i % 50:05d}.parquet", i // 50) for i in range(5000)]


def test_shares_have_each_row_group_once() -> None:
    for path, index in GROUPS:
        assert sum(in_share(path, index, share, seed=3) for share in SHARES) == 1
        assert in_share(path, index, (0.0, 1.0), seed=3)


@pytest.mark.parametrize("share", SHARES)
def test_share_has_its_fraction_of_the_row_groups(share: tuple[float, float]) -> None:
    part = sum(in_share(path, index, share, seed=0) for path, index in GROUPS) / len(GROUPS)
    assert abs(part - (share[1] - share[0])) < 0.02


def test_shares_depend_on_the_seed_only() -> None:
    def chosen(seed: int) -> list[bool]:
        return [in_share(path, index, (0.0, 0.5), seed) for path, index in GROUPS[:200]]

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)


def test_shares_are_the_same_in_every_release() -> None:
    """A table in place has no other record of its splits."""
    assert [i for i in range(8) if in_share("part-0.parquet", i, (0.0, 0.5), seed=0)] == [0, 1, 3, 4, 6, 7]
