"""A sink that notes in the store what events say of engines, alerts and the policy."""

import os

from monitor.events import Alert, Ordered, PolicyChanged, Recorded
from monitor.store import AlertFired, Armed, Disarmed, PolicyInForce, Store


class StateSink:
    """Keeps the store's state up to date: gates that engines have, alerts that are firing, the policy in force.

    Args:
        store: Takes the entries.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def decide_by(self, name: str, digest: str) -> None:
        """Note the policy that decides from here on."""
        # A path need not be Unicode, which an entry is.
        self._store.note(PolicyInForce(os.fsencode(name).decode(errors="replace"), digest))

    def emit(self, recorded: Recorded) -> None:
        """Note what the event changes, if it changes anything."""
        match recorded.event:
            case Ordered(kind="arm", result="sent", request=None) as event:
                self._store.note(Armed(event.engine, event.order))
            case Ordered(kind="disarm", request=None) | Ordered(result="expired", request=None) as event:
                self._store.note(Disarmed(event.engine, event.order))
            case Alert(mode="alert") | Alert(mode="enforce") as event:
                self._store.note(AlertFired(event.request.model, event.rule, event.severity, event.probe))
            case PolicyChanged(in_force=True) as event:
                self.decide_by(event.policy, event.digest)
            case _:
                pass
