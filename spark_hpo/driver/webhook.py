"""Delivers messages to a webhook from a thread: signed, repeated, and never in the way of a study."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from spark_hpo.redact import one_line

logger = logging.getLogger(__name__)

SIGNATURE = "X-Spark-Hpo-Signature"
_TIMEOUT_S = 10.0  # of one request
_PAUSES_S = (1.0, 4.0, 15.0)  # between attempts
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
        self._waiting: queue.Queue[bytes | None] = queue.Queue(_MAX_WAITING)
        self._hurry = threading.Event()  # the study has ended
        self._thread = threading.Thread(target=self._run, name="spark_hpo-webhook", daemon=True)
        self._thread.start()

    def send(self, message: Mapping[str, Any]) -> None:
        """Take a message. Returns at once, and never raises."""
        try:
            self._waiting.put_nowait(json.dumps(message, default=str).encode())
        except queue.Full:
            logger.warning("a notification is dropped, because %d others wait", _MAX_WAITING)

    def close(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` seconds until all messages are delivered. Return whether they are."""
        self._hurry.set()
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return False
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (body := self._waiting.get()) is not None:
            self._deliver(body)

    def _deliver(self, body: bytes) -> None:
        for pause_s in (*_PAUSES_S, None):
            error = self._post(body)
            if error is None:
                return
            is_permanent = isinstance(error, urllib.error.HTTPError) and not (
                error.code in _TEMPORARY or error.code >= 500
            )
            if pause_s is None or is_permanent:
                # The address is left out: it is a secret as a whole.
                text = one_line(error).replace(self._url, "the webhook")
                logger.warning("a notification cannot be delivered: %s", text)
                return
            time.sleep(min(pause_s, _PAUSES_S[0]) if self._hurry.is_set() else pause_s)

    def _post(self, body: bytes) -> Exception | None:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers[SIGNATURE] = "sha256=" + hmac.new(self._key, body, hashlib.sha256).hexdigest()
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
                return None
        except (OSError, ValueError) as exc:  # URLError, HTTPError and timeouts are OSErrors
            return exc
