"""Files in the current folder that hide modules of Python or packages that we need, such as `random.py`.

It imports almost nothing, because it must run before such a file is imported.
"""

import os
import sys

# Packages that are imported by a launch or its workers; the modules of Python itself come in addition.
PACKAGES = (
    *("ray", "torch", "torchvision", "numpy", "pyarrow", "optuna", "pydantic", "pydantic_core", "ruamel", "rich"),
    *("scipy", "safetensors", "sklearn", "altair", "onnx", "mlflow", "wandb", "tensorboardX", "aiohttp", "requests"),
    *("yaml", "click", "google", "grpc", "msgpack", "filelock", "jsonschema", "packaging", "psutil", "sqlalchemy"),
    *("sympy", "networkx", "jinja2", "fsspec", "typing_extensions", "attr", "attrs", "setproctitle", "colorama"),
    "vl_convert",
)
HARMLESS = ("test", "this", "antigravity", "idlelib", "lib2to3", "turtle", "turtledemo", "tkinter", "venv")


def find_shadow(folder: str) -> str | None:
    """What hides a module from programs that search this folder first, as a message; None if nothing does."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return None
    for name in names:
        module = name.removesuffix(".py")
        is_module = name != module or os.path.isfile(os.path.join(folder, name, "__init__.py"))
        is_ours = module in PACKAGES
        if is_module and (is_ours or module in sys.stdlib_module_names) and module not in HARMLESS:
            hidden = f"the package {module}" if is_ours else f"Python's module {module}"
            return f"{name} in the current folder hides {hidden} (rename it, or start the command in another folder)"
    return None


def stop_if_hidden() -> None:
    """Ends the process with one line if the current folder, which `python -m` searches first, hides a module."""
    if sys.path and sys.path[0] in ("", _current_folder()) and (shadow := find_shadow(sys.path[0] or ".")):
        print(f"error: {shadow}", file=sys.stderr)
        sys.exit(2)


def _current_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None
