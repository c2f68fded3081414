"""Announces the phases of a preparation as log records, which a display can follow."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


def announce(phase: str) -> None:
    """Log the phase that begins, such as `writing 60,000 rows`."""
    logger.info(phase)
