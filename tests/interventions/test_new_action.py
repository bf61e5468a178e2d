"""A new action of policies is four edits: its value and words, its YAML, from one to the other, and what it does."""

import json
import subprocess
import sys

import pytest

from tests.harness.bundles import make_bundle
from tests.harness.house import ROOT, copy_house, edit

VALUE = '''
@dataclass(frozen=True, slots=True)
class PageAction:
    """Wake somebody up."""

    team: str

    def __str__(self) -> str:
        return f"page team {self.team}"


Action = '''
YAML = '''class PageSpec(_Strict):
    """``page``."""

    team: str


class ActionSpec(_Strict):'''
DONE = """            case PageAction(team):
                self._recorder.record(
                    Escalated(
                        fired.request, decision.rule, decision.mode, fired.probe, fired.aggregate, fired.threshold,
                        fired.position, f"{team}: {decision.reason}",
                    )
                )
            case StopAction() as action:
                self._stop(case, action)
"""

USED = """
import json, sys
from monitor.events import EventLog, ProbeFired, Request
from monitor.interventions.decide import Actions
from monitor.interventions.state import RequestStates
from monitor.policy import load_policy
from monitor.sinks import MemorySink, Recorder
from monitor.store import MemoryStore
from monitor.telemetry.stats import Stats
from probes.bundle import load_bundle

policy = load_policy(sys.argv[1], load_bundle(sys.argv[2]))
fired = ProbeFired(Request("engine", "tiny", "user-a", "a", 4), "toxicity", 3.0, 2.0, 7, "user")
stats, sink = Stats(["toxicity"]), MemorySink()
actions = Actions(
    RequestStates(2, stats, MemoryStore()), Recorder(EventLog(), [sink], stats, MemoryStore()), stats, lambda *_: True
)
actions.apply(fired, policy.decide(fired))
print(json.dumps([event.reason for event in sink.events]))
"""


@pytest.fixture
def house(tmp_path):
    """A copy of the monitor with one action more."""
    copied = copy_house(tmp_path)
    policy = copied / "monitor/policy"
    edit(policy / "actions.py", ("\nAction = ", VALUE), (" | EscalateAction\n", " | EscalateAction | PageAction\n"))
    escalate, read = "    escalate: EscalateSpec | None = None\n", "    steer, stop = spec.steer, spec.stop\n"
    edit(
        policy / "document.py",
        ("class ActionSpec(_Strict):", YAML),
        (escalate, f"{escalate}    page: PageSpec | None = None\n"),
    )
    edit(
        policy / "load.py",
        (read, f"    if spec.page is not None:\n        return PageAction(spec.page.team)\n{read}"),
        ("import Action, AlertAction, EscalateAction,", "import Action, AlertAction, EscalateAction, PageAction,"),
    )
    stop, sinks = DONE[DONE.index("            case StopAction") :], "from monitor.sinks.recorder import Recorder\n"
    edit(
        copied / "monitor/interventions/decide.py",
        (stop, DONE),
        (sinks, f"from monitor.policy.actions import PageAction\n{sinks}"),
    )
    return copied


def test_four_edits_have_it_decided_and_told(house, tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "version: 1\nrules: [{name: wake, when: {probe: toxicity}, mode: alert, actions: [page: {team: safety}]}]\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", USED, policy, bundle.path],
        env={"PYTHONPATH": f"{house}:{ROOT}", "PATH": "", "HOME": str(tmp_path)},
        cwd=house,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    (reason,) = json.loads(result.stdout)
    assert reason.startswith("safety: probe toxicity reached 3.00") and reason.endswith(
        "rule 'wake' alerts: page team safety"
    )
