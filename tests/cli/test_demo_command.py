"""``plumbob demo``: which bundle it serves, and what it refuses, before anything is started."""

import msgspec
import pytest

from monitor.cli import demo
from monitor.errors import EngineError
from probes.bundle import load_bundle
from probes.bundle.shipped import DEMO_BUNDLE
from probes.models import cache_directory
from tests.harness.command_line import assert_one_error

pytest.importorskip("openai")


class Stopped(EngineError):
    """Raised where the server would be started."""


@pytest.fixture
def served(monkeypatch):
    """The configurations that the demo would have served."""
    configurations = []

    def stop(config, *_, **__):
        configurations.append(config)
        raise Stopped("Here the server would start.")

    monkeypatch.setattr(demo, "Serving", stop)
    monkeypatch.setattr(demo, "require_vllm", lambda **_: "0")
    monkeypatch.setattr(demo, "require_ports", lambda *_: None)
    monkeypatch.setattr(demo, "resolve_model", lambda name, progress: name)
    monkeypatch.setattr(demo, "identify", lambda path, name: load_bundle(DEMO_BUNDLE).manifest.model)
    return configurations


def test_it_serves_the_bundle_that_ships_and_fits_nothing(plumbob, served, monkeypatch):
    monkeypatch.setattr("probes.fit.bundle_fit.fit_bundle", lambda *_, **__: pytest.fail("fitted"))
    result = plumbob("demo", "--once")
    assert result.code == 2 and result.err.endswith("error: Here the server would start.\n")
    (config,) = served
    assert (config.model, config.monitor.bundle, config.eager) == ("demo", DEMO_BUNDLE, True)
    for probe in load_bundle(DEMO_BUNDLE).all_probes:
        assert probe.name in result.out


def test_it_fits_where_it_is_to(plumbob, served, monkeypatch, tiny_bundle):
    fitted, made = [], tiny_bundle()

    def fit(model, out, **options):
        fitted.append((model, out, options["command"]))
        return made

    monkeypatch.setattr("probes.fit.bundle_fit.fit_bundle", fit)
    plumbob("demo", "--once", "--fit")
    assert fitted == [("demo", cache_directory() / "bundles" / "demo", "plumbob demo --fit")]
    assert served[0].monitor.bundle == made.path


def test_a_demo_model_that_the_bundle_was_not_fitted_to_is_refused(plumbob, served, monkeypatch):
    identity = load_bundle(DEMO_BUNDLE).manifest.model
    other = msgspec.structs.replace(identity, parts={**identity.parts, "weights": "0" * 64})
    monkeypatch.setattr(demo, "identify", lambda path, name: other)
    result = plumbob("demo", "--once")
    assert_one_error(result, f"Bundle {DEMO_BUNDLE} was fitted to model 'demo', not to 'demo': weights differ")
    assert not served
