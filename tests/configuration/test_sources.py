"""The three sources of settings: their weights, for every setting, and errors that name the source."""

from enum import Enum
from pathlib import Path

import pytest
from pydantic import SecretStr

from monitor.configuration import (
    Layer,
    as_variables,
    combine,
    from_environment,
    from_file,
    from_flag,
    settings_of,
    without_variables,
)
from monitor.errors import ConfigError
from monitor.service.config import Limits, MonitorConfig
from monitor.supervisor.config import ServeConfig

SETTINGS = list(settings_of(ServeConfig))
NEEDED = {"model": "demo", "monitor": {"bundle": "/bundle"}}


def nested(path, value):
    for key in reversed(path):
        value = {key: value}
    return value


def at(config, path):
    for key in path:
        config = getattr(config, key)
    return config


def three(setting):
    """Values for the file, a variable and a flag: as they are written there, and as they are read."""
    default = setting.field.get_default(call_default_factory=True)
    if isinstance(default, bool):
        return [(not default, not default), (str(default).lower(), default), (not default, not default)]
    if isinstance(default, Enum):
        other, kept = next(member for member in type(default) if member is not default), default
        return [(value.value, value) for value in (other, kept, other)]
    if isinstance(default, int | float):
        return [(n, n) if n != 3 else (str(n), n) for n in (2, 3, 4)]
    if isinstance(default, tuple):
        kind = Path if setting.is_path else str
        return [(["/1"], (kind("/1"),)), ('["/2", "/3"]', (kind("/2"), kind("/3"))), (["/4"], (kind("/4"),))]
    if setting.secret:
        return [(text, SecretStr(text)) for text in "123"]
    kind = Path if setting.is_path else str
    return [(f"/{text}", kind(f"/{text}")) for text in "123"]


@pytest.mark.parametrize("setting", SETTINGS, ids=[setting.name for setting in SETTINGS])
def test_a_variable_outweighs_the_file_and_a_flag_outweighs_both(setting, tmp_path):
    (of_file, file_read), (of_variable, variable_read), (of_flag, flag_read) = three(setting)
    layers = [Layer("file", "file.yaml", nested(setting.path, of_file))]
    needed = Layer("file", "needed.yaml", {k: v for k, v in NEEDED.items() if k != setting.path[0]})
    if setting.path[0] == "monitor" and setting.path != ("monitor", "bundle"):
        needed = Layer("file", "needed.yaml", NEEDED)

    def read():
        effective = combine(ServeConfig, [*layers, needed])
        return at(effective.read(ServeConfig), setting.path), effective.sources[setting.path].label

    assert read() == (file_read, "file.yaml")
    layers[:0] = from_environment(ServeConfig, {setting.variable: of_variable})
    assert read() == (variable_read, setting.variable)
    if setting.flag is not None:
        layers[:0] = [from_flag(ServeConfig, setting.flag, of_flag)]
        assert read() == (flag_read, setting.flag)


def test_every_setting_is_described_and_has_a_default_or_is_needed():
    assert all(setting.field.description for setting in SETTINGS)
    assert [setting.name for setting in SETTINGS if setting.field.is_required()] == ["model", "monitor.bundle"]
    assert not [setting.name for setting in SETTINGS if setting.secret and setting.flag]


def test_what_is_made_in_code_is_what_the_code_says(monkeypatch):
    monkeypatch.setenv("PLUMBOB_PORT", "9")
    monkeypatch.setenv("PLUMBOB_MONITOR__GRPC_PORT", "9")
    config = ServeConfig(model="demo", monitor=MonitorConfig(bundle=Path("bundle")))
    assert (config.port, config.monitor.grpc_port) == (8000, 9401)


def file(tmp_path, text):
    path = tmp_path / "plumbob.yaml"
    path.write_text(text)
    return from_file(ServeConfig, path)


def test_paths_in_a_file_are_relative_to_it(tmp_path):
    text = "monitor: {bundle: b, policy: none, trust: [k.pub, /abs], audit: none}\napi_key_file: key\nmodel: m\n"
    config = combine(ServeConfig, [file(tmp_path, text)]).read(ServeConfig)
    assert config.monitor.bundle == tmp_path / "b" and config.api_key_file == tmp_path / "key"
    assert config.monitor.trust == (tmp_path / "k.pub", Path("/abs"))
    assert config.monitor.policy is None and config.monitor.audit is None
    # A model is not only a path.
    assert config.model == "m"


def test_an_empty_file_and_an_empty_section_say_nothing(tmp_path):
    for text in ("", "# nothing\n", "monitor:\n"):
        assert combine(ServeConfig, [file(tmp_path, text)]).sources == {}


MISTAKES = {
    "an unknown key": ("prot: 8001", "{file}: prot: unknown key. Did you mean 'port'?"),
    "an unknown key of a section": (
        "monitor: {grpc_prt: 1}",
        "{file}: monitor.grpc_prt: unknown key. Did you mean 'grpc_port'?",
    ),
    "a key in the wrong section": (
        "bundle: b",
        "{file}: bundle: unknown key. Did you mean 'monitor.bundle'?",
    ),
    "a key given twice": ("port: 1\nport: 2", "{file}: line 2, column 1: the key 'port' is given twice."),
    "no mapping": ("- port", "{file}: must be a mapping of keys to values."),
    "a section that is none": ("monitor: 5", "{file}: monitor: must be a mapping of keys to values."),
    "no YAML": ("port: [", "{file}: line"),
    "a value out of range": ("port: 70000", "{file}: port: must be less than or equal to 65535, not 70000."),
    "a value of another type": ("eager: perhaps", "{file}: eager: must be a valid boolean"),
    "a word that is none of them": (
        "on_drift: ignore",
        "{file}: on_drift: must be 'refuse' or 'shadow', not 'ignore'.",
    ),
    "a secret of another type": ("api_key: [s3cret]", "{file}: api_key: must be a valid string."),
    "a secret among arguments": (
        'vllm_arguments: ["--api-key", s3cret]',
        "{file}: vllm_arguments: the value of --api-key would show in the process list. Set VLLM_API_KEY",
    ),
    "two names for one thing": (
        "api_key: s3cret\napi_key_file: f",
        "api_key of {file} and api_key_file of {file} are two names for one thing. Leave one out.",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_file_is_one_line_that_names_the_file(tmp_path, mistake):
    text, said = MISTAKES[mistake]
    with pytest.raises(ConfigError) as caught:
        needed = {key: value for key, value in NEEDED.items() if key not in text}
        layers = [file(tmp_path, text), Layer("environment variable", "NEEDED", needed)]
        combine(ServeConfig, layers).read(ServeConfig)
    assert said.format(file=tmp_path / "plumbob.yaml") in str(caught.value)
    assert "\n" not in str(caught.value) and "s3cret" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "gone", tmp_path):
        with pytest.raises(ConfigError, match=rf"{path}: cannot be read: .* --config"):
            from_file(ServeConfig, path)


VARIABLES = {
    "unknown": ({"PLUMBOB_PROT": "1"}, "PLUMBOB_PROT: is no setting. Did you mean 'PLUMBOB_PORT'?"),
    "without its section": (
        {"PLUMBOB_GRPC_PORT": "1"},
        "PLUMBOB_GRPC_PORT: is no setting. Did you mean 'PLUMBOB_MONITOR__GRPC_PORT'?",
    ),
    "below a value": ({"PLUMBOB_PORT__X": "1"}, "PLUMBOB_PORT__X: is no setting."),
    "no number": ({"PLUMBOB_PORT": "http"}, "PLUMBOB_PORT: must be a valid integer"),
    "out of range": ({"PLUMBOB_MONITOR__GRPC_PORT": "0"}, "PLUMBOB_MONITOR__GRPC_PORT: must be greater than or equal"),
    "no list": (
        {"PLUMBOB_MONITOR__TRUST": "a.pub"},
        'PLUMBOB_MONITOR__TRUST: must be JSON, not \'a.pub\'. Write a list as ["a", "b"].',
    ),
    "a list of something else": (
        {"PLUMBOB_ALLOW_STEERING": "[1]"},
        "PLUMBOB_ALLOW_STEERING: must be a valid string, not 1.",
    ),
    "two for one setting": (
        {"PLUMBOB_MONITOR": '{"grpc_host": "h"}', "PLUMBOB_MONITOR__GRPC_HOST": "h"},
        "PLUMBOB_MONITOR and PLUMBOB_MONITOR__GRPC_HOST both give monitor.grpc_host. Leave one out.",
    ),
    "two names for one thing": (
        {"PLUMBOB_API_KEY": "s3cret", "PLUMBOB_API_KEY_FILE": "f"},
        "api_key of PLUMBOB_API_KEY and api_key_file of PLUMBOB_API_KEY_FILE are two names for one thing.",
    ),
}


@pytest.mark.parametrize("mistake", VARIABLES)
def test_a_mistake_in_the_environment_is_one_line_that_names_the_variable(mistake):
    variables, said = VARIABLES[mistake]
    with pytest.raises(ConfigError) as caught:
        combine(ServeConfig, [*from_environment(ServeConfig, variables), Layer("file", "f", NEEDED)]).read(ServeConfig)
    assert str(caught.value).startswith(said.partition(" both")[0])
    assert said in str(caught.value) and "s3cret" not in str(caught.value)


def test_two_names_for_one_thing_disagree_whichever_sources_have_them(tmp_path):
    layers = [file(tmp_path, "api_key: s3cret"), from_flag(ServeConfig, "--api-key-file", "f")]
    with pytest.raises(ConfigError, match=r"api_key of .*plumbob.yaml and api_key_file of --api-key-file are two"):
        combine(ServeConfig, layers)


@pytest.mark.parametrize(
    "variables",
    [
        {"PLUMBOB_CACHE": "/cache", "PLUMBOB_ENGINE": "{}", "PLUMB": "1", "HOME": "/"},
        # A Service called plumbob, and one called plumbob-monitor, as Kubernetes tells every container of them.
        {
            "PLUMBOB_SERVICE_HOST": "10.0.0.1",
            "PLUMBOB_SERVICE_PORT": "9401",
            "PLUMBOB_SERVICE_PORT_GRPC": "9401",
            "PLUMBOB_PORT": "tcp://10.0.0.1:9401",
            "PLUMBOB_PORT_9401_TCP": "tcp://10.0.0.1:9401",
            "PLUMBOB_PORT_9401_TCP_ADDR": "10.0.0.1",
            "PLUMBOB_MONITOR_PORT": "udp://10.0.0.1:1",
        },
        # As a Compose file sets what its user did not.
        {"PLUMBOB_MODEL": "", "PLUMBOB_PORT": ""},
    ],
)
def test_what_is_no_setting_is_left_alone(variables):
    assert from_environment(ServeConfig, variables) == []


def test_what_is_missing_says_every_way_to_give_it():
    effective = combine(ServeConfig, [])
    assert [setting.name for setting in effective.missing] == ["model", "monitor.bundle"]
    with pytest.raises(ConfigError, match="Give it with MODEL, PLUMBOB_MODEL or model in the file of --config"):
        effective.read(ServeConfig)
    with pytest.raises(ConfigError, match=r"monitor\.bundle is not set\. Give it with --bundle, PLUMBOB_MONITOR__BUN"):
        effective.read(MonitorConfig, "monitor")


def test_a_process_reads_from_its_environment_what_it_was_to_read():
    config = MonitorConfig(
        bundle=Path("b"),
        trust=(Path("a b"), Path("ü")),
        metrics_host="::1",
        grpc_host="localhost",
        audit=None,
        allow_control=True,
        endpoint="ipc:///x",
        limits=Limits(silence_seconds=1.5, max_engines=7),
    )
    told = {"HOME": "/", **as_variables(config, ("monitor",))}
    assert combine(ServeConfig, from_environment(ServeConfig, told)).read(MonitorConfig, "monitor") == config
    assert without_variables({**told, "PLUMBOB_CACHE": "/c"}) == {"HOME": "/", "PLUMBOB_CACHE": "/c"}


def test_every_setting_of_the_monitor_is_handed_on():
    """But a policy and a group that there are not, which is the default."""
    handed = as_variables(MonitorConfig(bundle=Path("b")), ("monitor",))
    known = {setting.variable for setting in SETTINGS if setting.path[0] == "monitor"}
    assert known - handed.keys() == {"PLUMBOB_MONITOR__POLICY", "PLUMBOB_MONITOR__SOCKET_GROUP"}


@pytest.mark.parametrize("flag", ["--host", "--metrics-host", "--grpc-host"])
def test_each_server_has_an_interface_of_its_own(flag):
    config = combine(ServeConfig, [Layer("file", "f", NEEDED), from_flag(ServeConfig, flag, "0.0.0.0")])
    read = config.read(ServeConfig)
    hosts = {"--host": read.host, "--metrics-host": read.monitor.metrics_host, "--grpc-host": read.monitor.grpc_host}
    assert {name for name, host in hosts.items() if host != "127.0.0.1"} == {flag}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.7", "plumbob", "localhost.example.org"])
def test_orders_are_taken_on_the_loopback_interface_alone(host):
    config = MonitorConfig(bundle=Path("b"), grpc_host=host, allow_control=True)
    with pytest.raises(ConfigError, match=r"order engines to steer: there are no credentials yet\. Set grpc_host"):
        config.require_control()
    config.model_copy(update={"allow_control": False}).require_control()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "LOCALHOST", "::ffff:127.0.0.1"])
def test_whoever_opens_the_metrics_opens_no_orders(host):
    MonitorConfig(bundle=Path("b"), metrics_host="0.0.0.0", grpc_host=host, allow_control=True).require_control()
