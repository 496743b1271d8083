"""The worker process: loads one function from a file and applies it to JSON lines. Standard library only.

Run as a script, `serve.py FILE FUNCTION MEMORY_MIB`, so that a worker imports neither torch nor this project.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any


def load(file: str, name: str) -> Any:
    """The function `name` of a Python file; its folder is importable."""
    path = Path(file).resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path.name} is no Python file")
    sys.path.insert(0, str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise AttributeError(f"{path.name} has no function {name}; it has {', '.join(sorted(known)) or 'none'}")
    return function


def shown(error: BaseException) -> str:
    """Type, message, and the innermost line that is not ours."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error)[:300]}{where}"


def _limit_memory(mib: int) -> None:
    if mib > 0:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (mib << 20, mib << 20))


def _die_with(parent: int) -> None:
    """Ends this process when the one that started it is gone, even in the middle of a call."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main() -> None:
    """Says whether the function could be loaded, then answers every line with one line."""
    file, name, memory = sys.argv[1:4]
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the function prints must not look like an answer
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()

    def reply(message: dict[str, Any]) -> None:
        try:
            line = json.dumps(message)
        except (TypeError, ValueError) as error:
            line = json.dumps({"error": f"its result is no plain data: {error}"})
        replies.write(line + "\n")
        replies.flush()

    try:
        function = load(file, name)
        _limit_memory(int(memory))
    except BaseException as error:
        reply({"error": shown(error)})
        return
    reply({"value": None})
    for line in sys.stdin:
        try:
            message = {"value": function(*json.loads(line))}
        except BaseException as error:  # SystemExit too: a function that leaves is a failed call
            message = {"error": shown(error)}
        reply(message)


if __name__ == "__main__":
    main()
