"""The section `notify`: messages about a study to a chat or another program."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from spark_hpo.config.section import FromList, PositiveNumber, Section


class NotifyConfig(Section):
    """Messages about a study to a webhook."""

    url_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Environment variable of the driver with the address, `https://...`. It is not in the study file,
    because whoever knows the address of a webhook can post there."""
    format: Literal["json", "slack"] = "json"
    """`slack`: a text, as Slack, Mattermost and others take it. `json`: also the event, the study, the trial
    and its metric."""
    events: Annotated[
        tuple[Literal["end", "failure", "stall", "best"], ...], FromList, Field(min_length=1)
    ] = ("end", "failure", "stall")
    """What to report. `end`: the study has ended. `failure`: an error or an interrupt has ended its driver.
    `stall`: no trial has reported for `stall_s`. `best`: a trial is the best so far."""
    stall_s: PositiveNumber = 3600.0
    """Seconds without a report after which a study counts as stalled."""
    key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Environment variable with a key. The header `X-Spark-Hpo-Signature` of a message is then `sha256=` and
    the HMAC of its body, in hexadecimal digits."""
