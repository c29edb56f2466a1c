"""Kernels that are there at once: forks of a process that has torch and the laboratory in it already.

A provisioner of Jupyter's, chosen by JUPYTER_DEFAULT_PROVISIONER_NAME=normcore-warm, as `make book` and `make test` do:
a fresh kernel needs nine seconds of a 2 GHz processor for what it imports.
"""

import os
import sys
from collections.abc import Mapping
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

from jupyter_client.provisioning.local_provisioner import LocalProvisioner

PRELOADED = ["nbclient", "ipykernel.kernelapp", "torch._dynamo", "normcore.bookkit", "normcore.lab"]
"""The second half of torch comes with the first step of an optimizer, nbclient with the parent's main module."""

OWN = ("NORMCORE_", "JPY_", "PYTEST_")
"""Variables that nothing reads while it is imported: they may be others than those of the process that is forked."""

STARTED: dict[str, str] = {}
"""The environment in which the process that is forked was begun."""


def _fixed(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(OWN)}


def may_fork(command: list[str], environment: Mapping[str, str]) -> bool:
    """Whether a kernel may be a fork: of this Python, in the environment of the process forked, and without a GPU.

    CUDA does not survive a fork once anything has asked for it.
    """
    ours = command[:3] == [sys.executable, "-m", "ipykernel_launcher"] and _fixed(environment) == STARTED
    return ours and environment.get("NORMCORE_PROFILE") != "gpu"


class Warm(LocalProvisioner):
    """Fork the kernels that may be forks, on Linux, and start others afresh."""

    process: Any = None

    async def pre_launch(self, **options: Any) -> Any:
        """Begin the process that is forked, and only then choose ports, which somebody might take in those nine seconds."""
        if not STARTED and sys.platform == "linux":  # elsewhere system libraries may not survive a fork
            STARTED.update(_fixed(os.environ))
            context = get_context("forkserver")
            context.set_forkserver_preload(PRELOADED)
            _Child(context.Process(target=int)).wait()
        return await super().pre_launch(**options)

    async def launch_kernel(self, cmd: list[str], **options: Any) -> Any:
        """Start a kernel as `cmd` would."""
        environment = options.get("env") or dict(os.environ)
        if not may_fork(cmd, environment):
            return await super().launch_kernel(cmd, **options)
        told = cmd[3:], options.get("cwd"), environment
        self.process = _Child(get_context("forkserver").Process(target=serve, args=told))
        self.pid = self.process.pid
        return self.connection_info


class _Child:
    """A process of multiprocessing with the words of subprocess.Popen that a provisioner uses."""

    stdin = stdout = stderr = None

    def __init__(self, process: Any) -> None:
        process.start()
        self.pid, self.process = process.pid, process

    def poll(self) -> Any:
        return self.process.exitcode

    def wait(self) -> Any:
        self.process.join()
        return self.poll()

    def send_signal(self, number: int) -> None:
        if self.process.is_alive():
            os.kill(self.pid, number)


def serve(arguments: list[str], folder: str | None, environment: dict[str, str]) -> None:
    """Be the kernel, in the forked process."""
    import matplotlib as mpl
    from ipykernel.kernelapp import launch_new_instance

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder or ".")
    inline = "module://matplotlib_inline.backend_inline"
    mpl.rcParams["backend"] = inline  # ipykernel tells a matplotlib that is yet to be imported
    Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    launch_new_instance([*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])


def _end_with(parent: Any) -> None:
    """Leave when the process that asked for the kernel is gone, killed say; the one forked waits for all kernels."""
    parent.join()
    os._exit(1)
