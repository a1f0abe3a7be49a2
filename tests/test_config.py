"""Settings from a file and from flags."""

from pathlib import Path

import pytest

from interpret_server.config import ConfigError, Settings, load_settings


def test_a_server_without_settings_listens_on_the_loopback() -> None:
    settings = load_settings()
    assert settings == Settings()
    assert settings.address == "127.0.0.1:50051"
    assert settings.max_message_bytes == 64 * 1024 * 1024
    assert settings.max_request_bytes == 256 * 1024 * 1024
    assert settings.model_repository is None


def test_flags_win_over_the_file_and_absent_flags_do_not(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('address = "0.0.0.0:1"\nmax_queue = 5\nmax_batch = 6\ngrace = 1\n')
    settings = load_settings(file, {"max_queue": 7, "max_batch": None})
    assert (settings.address, settings.max_queue, settings.max_batch) == ("0.0.0.0:1", 7, 6)
    assert settings.grace == 1


def test_paths_of_a_file_are_meant_from_its_folder(tmp_path: Path) -> None:
    for folder in ("models", "data"):
        (tmp_path / folder).mkdir()
    file = tmp_path / "server.toml"
    file.write_text('model_repository = "models"\ndata_root = "data"\nplugin_dirs = ["a", "/b"]\n')
    settings = load_settings(file)
    assert settings.data_root == tmp_path / "data"
    assert settings.model_repository == tmp_path / "models"
    assert settings.plugin_dirs == (tmp_path / "a", Path("/b"))


@pytest.mark.parametrize("level", ["debug", "DEBUG", "Debug"])
def test_log_levels_are_taken_in_any_case(level: str) -> None:
    assert load_settings(flags={"log_level": level}).log_level == "DEBUG"


@pytest.mark.parametrize("address", ["localhost:0", "[::1]:50051", "host.example:65535"])
def test_addresses_are_a_host_and_a_port(address: str) -> None:
    assert load_settings(flags={"address": address}).address == address


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("adress = 'x'", "adress is not a setting; there are address, "),
        ("[server]\naddress = 'x'", "server is not a setting"),
        ("address = 'localhost'", "address: 'localhost' is not host:port"),
        ("address = 'localhost:65536'", "address: 'localhost:65536' is not host:port"),
        ("address = '::1:50051'", "address: '::1:50051' is not host:port"),
        ("device = 'gpu'", "device: 'gpu' is none of auto, cpu"),
        ("max_queue = 0", "max_queue: "),
        ("max_queue_mb = 0", "max_queue_mb: "),
        ("max_running_audits = 0", "max_running_audits: "),
        ("max_step = 0", "max_step: "),
        ("max_batch = 'many'", "max_batch: "),
        ("max_message_mb = 2048", "max_message_mb: "),
        ("max_request_mb = 0", "max_request_mb: "),
        ("grace = -1", "grace: "),
        ("grace = nan", "grace: "),
        ("repository_poll = -1", "repository_poll: "),
        ("require_models = 'perhaps'", "require_models: "),
        ("execution = 'slow'", "execution: "),
        ("log_level = 'loud'", "log_level: "),
        ("model_repository = 'nowhere'", "model_repository: "),
        ("data_root = 'nowhere'", "data_root: "),
        ("max_queue = 0\nmax_batch = 0", "; max_batch: "),
        ("address = ", "is not a TOML file: "),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "server.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(file)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.toml cannot be read"):
        load_settings(tmp_path / "server.toml")


def test_every_setting_is_described_and_documented() -> None:
    page = (Path(__file__).parents[1] / "docs" / "operations.md").read_text(encoding="utf-8")
    for name, field in Settings.model_fields.items():
        assert field.description
        assert f"{name} = " in page, f"docs/operations.md has no {name}"


def test_audits_are_kept_in_the_users_folder_of_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert Settings().audit_folder == tmp_path / "state/interpret-server/audits"
    monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings().audit_folder == tmp_path / ".local/state/interpret-server/audits"
    (tmp_path / "server.toml").write_text('audit_root = "here"\nmax_audit_mb = 1\n')
    settings = load_settings(tmp_path / "server.toml")
    assert settings.audit_folder == tmp_path / "here"
    assert settings.max_audit_bytes == 1024 * 1024
    assert not list(tmp_path.glob("*/"))
