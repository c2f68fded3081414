"""The programs of docs/from-wandb.md and docs/from-determined.md: the imported study runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from spark_hpo.cli import main
from tests.support.command_line import output, run_in_process, spark_hpo
from tests.support.documents import blocks

pytestmark = pytest.mark.medium


@pytest.mark.parametrize(
    ("page", "source", "program", "trials"),
    [
        ("docs/from-wandb.md", "sweep.yaml", "train.py", 8),
        ("docs/from-determined.md", "experiment.yaml", "model_def.py", 8),
    ],
)
def test_page_leads_from_the_file_to_a_study_that_runs(
    page: str, source: str, program: str, trials: int, tmp_path: Path
) -> None:
    (tmp_path / source).write_text(blocks(page, "yaml")[0].text)
    _, ours = blocks(page, "python")
    (tmp_path / program).write_text(ours.text)
    done = run_in_process(main, ["import", source, "--json"], tmp_path)
    written = json.loads(output(done).splitlines()[-1])
    assert Path(written["study_file"]) == tmp_path / "my_study.yaml"
    text = (tmp_path / "my_study.yaml").read_text()
    assert all(f"# - {note['key']}: {note['text']}" in text for note in written["notes"])
    again = run_in_process(main, ["import", source], tmp_path)
    assert (again.returncode, "--overwrite" in again.stderr) == (2, True)

    ran = spark_hpo(tmp_path, "run", "my_study.yaml", "backend=inline", "--json")
    result = json.loads(output(ran).splitlines()[-1])
    study = yaml.safe_load(text)
    assert sum(result["trials"].values()) == trials == study["budget"]["trials"]
    assert result["best"]["params"].keys() == study["space"].keys()
