"""Delivers messages to a webhook from a thread: signed, repeated, and never in the way of a study."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Mapping
from itertools import count
from typing import Any

from spark_hpo.redact import one_line
from spark_hpo.tracking.outbox import Outbox

logger = logging.getLogger(__name__)

SIGNATURE = "X-Spark-Hpo-Signature"
_TIMEOUT_S = 10.0  # of one request
_ATTEMPTS = 5  # in about 15 s
_TEMPORARY = (408, 425, 429)  # HTTP states that may change, besides those from 500 on
_MAX_WAITING = 100  # messages; further ones are dropped


class Webhook:
    """Posts JSON messages in the order in which they come.

    Args:
        url: http:// or https://. It is a secret: whoever knows it can post there.
        key: signs the messages; None: they are not signed.
    """

    def __init__(self, url: str, key: bytes | None = None) -> None:
        self._url = url
        self._key = key
        self._numbers = count()
        self._outbox: Outbox[int, bytes] = Outbox(
            "spark_hpo-webhook", self._post, limit=_MAX_WAITING, gives_up=self._gives_up
        )

    def send(self, message: Mapping[str, Any]) -> None:
        """Take a message. Returns at once, and never raises."""
        if not self._outbox.put(next(self._numbers), json.dumps(message, default=str).encode()):
            logger.warning("a notification is dropped, because %d others wait", _MAX_WAITING)

    def close(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` seconds for the messages that wait. Returns whether none waits any more.

        What is not delivered by then is dropped.
        """
        if self._outbox.close(timeout_s, ending_s=0.0) == self._outbox.num_given_up:
            return True
        logger.warning("notifications are dropped: the webhook has not taken them within %.3g s", timeout_s)
        return False

    def _gives_up(self, number: int, error: Exception, attempts: int) -> bool:
        is_permanent = isinstance(error, urllib.error.HTTPError) and not (
            error.code in _TEMPORARY or error.code >= 500
        )
        if not is_permanent and attempts < _ATTEMPTS:
            return False
        # The address is left out: it is a secret as a whole.
        text = one_line(error).replace(self._url, "the webhook")
        logger.warning("a notification cannot be delivered: %s", text)
        return True

    def _post(self, number: int, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers[SIGNATURE] = "sha256=" + hmac.new(self._key, body, hashlib.sha256).hexdigest()
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
            return
