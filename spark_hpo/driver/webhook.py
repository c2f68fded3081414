"""Delivers messages to a webhook from a thread: signed, repeated, and never in the way of a study."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import threading
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Mapping
from typing import Any

from spark_hpo.redact import one_line

logger = logging.getLogger(__name__)

SIGNATURE = "X-Spark-Hpo-Signature"
_TIMEOUT_S = 10.0  # of one request
_PAUSES_S = (1.0, 4.0, 15.0)  # between attempts
_LAST_PAUSE_S = 1.0  # between attempts, once the webhook is being closed
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
        self._waiting: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._is_closing = threading.Event()
        self._is_given_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spark_hpo-webhook", daemon=True)
        self._thread.start()

    def send(self, message: Mapping[str, Any]) -> None:
        """Take a message. Returns at once, and never raises."""
        with self._changed:
            if len(self._waiting) >= _MAX_WAITING:
                logger.warning("a notification is dropped, because %d others wait", _MAX_WAITING)
                return
            self._waiting.append(json.dumps(message, default=str).encode())
            self._changed.notify()

    def close(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` seconds until all messages are delivered. Return whether they are.

        What is not delivered by then is dropped.
        """
        with self._changed:
            self._is_closing.set()
            self._changed.notify()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        self._is_given_up.set()
        logger.warning("notifications are dropped: the webhook has not taken them within %.3g s", timeout_s)
        return False

    def _run(self) -> None:
        while not self._is_given_up.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closing.is_set())
                if not self._waiting:
                    return
                body = self._waiting.popleft()
            self._deliver(body)

    def _deliver(self, body: bytes) -> None:
        for pause_s in (*_PAUSES_S, None):
            error = self._post(body)
            if error is None or self._is_given_up.is_set():
                return
            is_permanent = isinstance(error, urllib.error.HTTPError) and not (
                error.code in _TEMPORARY or error.code >= 500
            )
            if pause_s is None or is_permanent:
                # The address is left out: it is a secret as a whole.
                text = one_line(error).replace(self._url, "the webhook")
                logger.warning("a notification cannot be delivered: %s", text)
                return
            if self._is_closing.wait(pause_s):  # the study waits for its last messages
                self._is_given_up.wait(min(pause_s, _LAST_PAUSE_S))

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
