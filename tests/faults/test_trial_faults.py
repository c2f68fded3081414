"""Trials that fail by their own doing: they are not retried or promoted, and do not stop the others."""

from __future__ import annotations

from collections.abc import Callable

from tests.faults.cost_table import CostTable
from tests.faults.study_run import StudyRun

FATES = ["raise", "nan", "infinity", "diverge", "fine", "calm"]


def test_failed_trials_have_a_reason_and_are_never_promoted(
    new_study: Callable[..., StudyRun], costs: CostTable
) -> None:
    study = new_study(
        spark={"spark.master": "local[2]"},
        space={"fate": {"type": "choice", "options": FATES}, "learning_rate": 0.01, "hidden_units": 4},
        # Six at the lowest rung; three are left for the next, and one of them diverges there.
        search={
            "sampler": "grid",
            "scheduler": "successive_halving",
            "max_resource": 4,
            "reduction_factor": 2,
        },
        budget={"trials": len(FATES)},
        stopping={"max_failed_share": 1.0},
    )
    answer = study.finish_and_check()
    fate = {e["trial_id"]: e["params"]["fate"] for e in study.of_kind("assigned")}
    failed = {fate[e["trial_id"]]: e for e in study.reported() if e["failure"]}
    assert answer["trials"]["failed"] == len(failed) == 4
    rungs = {name: report["rung"] for name, report in failed.items()}
    assert rungs == {"raise": 0, "nan": 0, "infinity": 0, "diverge": 1}
    assert {report["failure"]["kind"] for report in failed.values()} == {"trial"}
    assert {report["attempt"] for report in failed.values()} == {1}
    assert "ValueError: as it must" in failed["raise"]["failure"]["traceback"]
    assert "ValueError: as it must" in study.log
    assert "the training has diverged" in failed["nan"]["failure"]["message"]
    assert fate[answer["best"]["trial"]] in ("fine", "calm")
    kept = {path.parent.name for path in (study.study_dir / "checkpoints").rglob("*.pt")}
    assert kept == {f"trial-{answer['best']['trial']:06d}"}, "no checkpoint of a failed trial is left"
    for name in ("raises", "NaN", "infinity", "diverges"):
        costs.add(f"trial {name}")
