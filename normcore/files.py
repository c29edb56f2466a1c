"""Write a file whole or not at all."""

import os
from pathlib import Path


def atomic_write(path: str | Path, content: bytes | str) -> Path:
    """Write a file so that a kill, a full disk or a second writer leaves the old one or the new one, never a part.

    The bytes go to a temporary name beside it, are forced to the disk, and only then get their name. Text is UTF-8, a
    missing folder is made, the path is given back. Where an OSError is raised the old file is still there.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with scratch.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)
    return target
