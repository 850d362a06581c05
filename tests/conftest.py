"""For every test: no network, one thread, and tiny models of each architecture, built once per session."""

import os
import socket
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where transformers copies the code that a checkpoint brings before it runs.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="vembed_tests_")

import pytest
import torch

from tests import tiny

torch.set_num_threads(1)


def _refuse(_socket: socket.socket, address: object) -> None:
    raise RuntimeError(f"a test tried to reach {address}; tests use no network")


@pytest.fixture(autouse=True, scope="session")
def _no_network():
    """Connections to anything but this machine fail at once."""
    real = socket.socket.connect

    def connect(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else address
        if self.family in (socket.AF_INET, socket.AF_INET6) and host not in ("127.0.0.1", "::1", "localhost"):
            _refuse(self, address)
        real(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        yield


def _folder_fixture(build, name):
    @pytest.fixture(scope="session", name=name)
    def fixture(tmp_path_factory):
        return build(tmp_path_factory.mktemp(name))

    return fixture


clip_folder = _folder_fixture(tiny.tiny_clip, "clip_folder")
siglip_folder = _folder_fixture(tiny.tiny_siglip, "siglip_folder")
bert_folder = _folder_fixture(lambda folder: tiny.tiny_bert(folder, pooling="mean"), "bert_folder")
vit_folder = _folder_fixture(tiny.tiny_vit, "vit_folder")
dinov2_folder = _folder_fixture(tiny.tiny_dinov2, "dinov2_folder")
timm_folder = _folder_fixture(tiny.tiny_timm, "timm_folder")
