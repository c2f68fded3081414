"""The picture of a comparison: median regret over time with its band, one panel for each problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from spark_hpo.errors import ConfigError
from tests.benchmarks.replay.run import Replay

_TIMES = np.linspace(0.02, 1.0, 99)
_PANEL_INCHES = (4.4, 3.4)
_LINEAR_BELOW = 0.01  # regret: the axis is linear around 0, where it may go below


def draw(replays: Sequence[Replay], file: Path) -> None:
    """Write the picture: lines are medians over seeds, bands go from the lower to the upper quartile.

    The first method has the thickest line.

    Raises:
        ConfigError: there is no matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ConfigError(
            f"{file}: a picture needs matplotlib: pip install 'spark_hpo[replay]', or leave out --picture"
        ) from exc
    problems = list(dict.fromkeys((one.task, one.slots) for one in replays))
    methods = list(dict.fromkeys(one.method for one in replays))
    columns = min(len(problems), 3 if len(problems) in (3, 5, 6) else 4)
    rows = -(-len(problems) // columns)
    panel_width, panel_height = _PANEL_INCHES
    figure = Figure(
        figsize=(panel_width * columns, panel_height * rows + 0.2 * len(methods)), layout="constrained"
    )
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (task, slots) in zip(panels, problems, strict=False):
        for number, method in enumerate(methods):
            group = [o for o in replays if (o.task, o.slots, o.method) == (task, slots, method)]
            if not group:
                continue
            regrets = np.array([[one.regret(when) for when in _TIMES] for one in group])
            low, middle, high = np.quantile(regrets, [0.25, 0.5, 0.75], axis=0)
            colour = f"C{number % 10}"
            style = "-" if number < 10 else "--"
            width = 1.4 if number else 2.8  # the first method stands out
            times = _TIMES * group[0].budget
            panel.plot(times, middle, color=colour, linestyle=style, label=method, linewidth=width)
            panel.fill_between(times, low, high, color=colour, alpha=0.12, linewidth=0)
        panel.axhline(0.0, color="0.6", linewidth=0.6)
        panel.set_yscale("symlog", linthresh=_LINEAR_BELOW)
        panel.set_ylim(top=1.1)
        panel.set_xlim(left=0.0)
        panel.set_title(f"{task}, {slots} slots" if slots else task, fontsize=10)
        panel.set_xlabel("full trainings per slot")
        panel.set_ylabel("normalised regret")
    for panel in panels[len(problems) :]:
        panel.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), fontsize=8)
    figure.savefig(file, dpi=110)


def draw_families(replays: Sequence[Replay], families: Mapping[str, str], file: Path) -> None:
    """Write the picture of the whole comparison: a panel for each family, the longest searches over time.

    Lines are medians over the searches of all its problems, bands go from the lower to the upper quartile.

    Args:
        families: by task.

    Raises:
        ConfigError: there is no matplotlib.
    """
    longest = max(one.budget for one in replays)
    merged = [replace(one, task=families[one.task], slots=0) for one in replays if one.budget == longest]
    draw(merged, file)
