"""For every test: no network, one thread, and tiny models of each architecture, built once per session."""

import gc
import importlib
import os
import random
import shutil
import socket
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_CBWR"] = "AUTO"  # where in memory its operands lie decides no more how MKL rounds
# Where transformers copies the code that a checkpoint brings before it runs.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="vembed_tests_")

import pytest  # neither torch nor transformers: xdist's controller reads this file before it starts its workers


def pytest_collection_finish() -> None:
    """What imports and collection made stays to the end: the garbage collector need not visit it again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["HF_MODULES_CACHE"], ignore_errors=True)


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


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk():
    """What a test reads is there whether or not a disk has it: only a power cut could tell."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Whatever ran before, a test draws the same numbers from the global generators."""
    random.seed(0)
    importlib.import_module("numpy.random").seed(0)
    # torch.manual_seed would also note for every kind of accelerator from where it was called: a second in all.
    importlib.import_module("torch").default_generator.manual_seed(0)


def _folder_fixture(kind, **options):
    @pytest.fixture(scope="session", name=f"{kind}_folder")
    def fixture(tmp_path_factory):
        build = getattr(importlib.import_module("tests.tiny"), f"tiny_{kind}")
        return build(tmp_path_factory.mktemp(f"{kind}_folder"), **options)

    return fixture


clip_folder = _folder_fixture("clip")
siglip_folder = _folder_fixture("siglip")
bert_folder = _folder_fixture("bert", pooling="mean")
vit_folder = _folder_fixture("vit")
dinov2_folder = _folder_fixture("dinov2")
timm_folder = _folder_fixture("timm")
