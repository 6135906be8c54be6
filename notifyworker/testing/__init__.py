"""
For the tests of whoever uses notifyworker: drain what is due, move time, look at what was enqueued, call a handler.

Everything here finds the database as a worker does, `NOTIFYWORKER_DSN` first, which the pytest plugin's fixture sets; or
takes `dsn`. Not for production: `travel` changes rows behind the back of whoever works on them.
"""

from notifyworker.testing.drained import Drained, DrainTimeout, drain
from notifyworker.testing.enqueued import assert_enqueued, assert_not_enqueued, enqueued
from notifyworker.testing.handler_run import HandlerRun
from notifyworker.testing.travelled import travel

__all__ = [
    "DrainTimeout",
    "Drained",
    "HandlerRun",
    "assert_enqueued",
    "assert_not_enqueued",
    "drain",
    "enqueued",
    "travel",
]
