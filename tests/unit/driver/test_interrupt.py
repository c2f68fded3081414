import os
import signal

import pytest

from spark_hpo.driver.interrupt import Interrupt


def test_interrupt_takes_the_first_signal_and_raises_at_the_second() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.is_requested()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_interrupt_copes_with_a_handler_that_python_cannot_restore() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with Interrupt() as interrupt:
            interrupt._before[signal.SIGTERM] = None  # what signal.signal returns for a handler in C
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
