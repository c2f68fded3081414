from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_hpo.data.plan.shards import Segment, StepPlan, plan_shards
from spark_hpo.errors import DataError
from tests.support.manifests import manifest_of, rows_of

row_group_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12)
seeds = st.none() | st.integers(0, 2**40)


@given(sizes=row_group_sizes, world_size=st.integers(1, 9), seed=seeds)
def test_shards_cover_each_row_once_and_differ_by_at_most_one_row(
    sizes: list[int], world_size: int, seed: int | None
) -> None:
    manifest = manifest_of(*sizes)
    if manifest.rows < world_size:
        with pytest.raises(DataError, match=f"{manifest.rows} rows.* {world_size} ranks"):
            plan_shards(manifest, world_size, seed)
        return
    shards = plan_shards(manifest, world_size, seed)
    dealt = Counter(row for shard in shards for row in rows_of(shard.segments))
    everything = [(g.file, g.index, row) for g in manifest.row_groups for row in range(g.rows)]
    assert dealt == Counter(everything)
    assert [shard.rows for shard in shards] == [len(rows_of(shard.segments)) for shard in shards]
    assert max(s.rows for s in shards) - min(s.rows for s in shards) <= 1
    reads = sum(len(shard.segments) for shard in shards)
    assert reads <= len(sizes) + world_size - 1, "more row groups are cut than ranks meet"


@given(sizes=row_group_sizes, world_size=st.integers(1, 9), batch_size=st.integers(1, 60), seed=seeds)
def test_shards_have_equal_steps_and_know_the_rows_of_other_ranks(
    sizes: list[int], world_size: int, batch_size: int, seed: int | None
) -> None:
    sizes = [*sizes, world_size]
    shards = plan_shards(manifest_of(*sizes), world_size, seed)
    plan = StepPlan.of(shards, batch_size)
    counts = [
        [stop - start for start, stop in (plan.bounds(shard.rows, step) for step in range(plan.steps))]
        for shard in shards
    ]
    assert [sum(of_rank) for of_rank in counts] == [shard.rows for shard in shards]
    assert all(rows >= 1 for of_rank in counts for rows in of_rank)
    together = [sum(step) for step in zip(*counts, strict=True)]
    assert together == [plan.global_rows(step) for step in range(plan.steps)]
    if batch_size >= 2 * world_size:
        assert max(together) < batch_size + world_size


def test_steps_of_one_rank_have_at_most_batch_size_rows() -> None:
    plan = StepPlan.of(plan_shards(manifest_of(100), 1, None), 32)
    assert [plan.global_rows(step) for step in range(plan.steps)] == [25, 25, 25, 25]


def test_shards_without_a_seed_keep_the_order_of_the_files() -> None:
    shards = plan_shards(manifest_of(4, 4, 4), 2, None)
    assert shards[0].segments == (Segment(0, 0, 0, 4), Segment(0, 1, 0, 2))
    assert shards[1].segments == (Segment(0, 1, 2, 4), Segment(1, 0, 0, 4))


def test_shards_depend_on_the_seed() -> None:
    manifest = manifest_of(*[5] * 20)
    plans = {seed: plan_shards(manifest, 2, seed) for seed in range(4)}
    assert plans[3] == plan_shards(manifest, 2, 3)
    assert len({plan[0].segments for plan in plans.values()}) == 4


def test_shards_divide_a_row_group_between_ranks() -> None:
    shards = plan_shards(manifest_of(10), 4, 0)
    assert [shard.rows for shard in shards] == [2, 3, 2, 3]


def test_too_few_rows_are_refused_with_the_cure() -> None:
    with pytest.raises(DataError, match=r"3 rows.* 4 ranks.*at most 3 ranks"):
        plan_shards(manifest_of(1, 2), 4, 0)
