"""Skips fail on CI unless they are on the list, those of whole modules too."""

import pytest

pytest_plugins = ["pytester"]

TESTS = """
import pytest

def test_allowed():
    pytest.skip("takes a GPU")

def test_forgotten():
    pytest.skip("promtool is not installed")

@pytest.mark.skipif(True, reason="not today")
def test_marked():
    pass

@pytest.mark.xfail(reason="not yet")
def test_expected():
    raise AssertionError
"""
MODULE = """
import pytest

pytest.skip("a package is missing", allow_module_level=True)
"""


@pytest.fixture
def run(pytester, monkeypatch):
    pytester.makeconftest("from tests.conftest import pytest_make_collect_report, pytest_runtest_makereport")

    def run(ci):
        monkeypatch.setenv("CI", ci)
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist")

    return run


def test_a_skip_that_is_not_on_the_list_fails_on_ci(run, pytester):
    pytester.makepyfile(TESTS)
    result = run("true")
    result.assert_outcomes(skipped=1, failed=1, errors=1, xfailed=1)
    result.stdout.fnmatch_lines(["*test_forgotten is not to be skipped here: *promtool is not installed*"])


def test_elsewhere_it_is_a_skip(run, pytester):
    pytester.makepyfile(TESTS)
    run("").assert_outcomes(skipped=3, xfailed=1)


def test_a_module_that_is_skipped_is_an_error_on_ci(run, pytester):
    pytester.makepyfile(MODULE)
    assert run("true").ret != 0
    assert run("").ret == pytest.ExitCode.NO_TESTS_COLLECTED
