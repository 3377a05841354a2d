"""Run a script with our frontends in the place of Horovod's."""

import os
import runpy
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, TracebackType

from horovod_detox import attacks, process
from horovod_detox.config import PREFIX, Detox
from horovod_detox.launcher.arguments import Arguments, parse
from horovod_detox.launcher.imports import BUILD, Finder
from horovod_detox.launcher.speech import refuse, say
from horovod_detox.launcher.stand_in import Script
from horovod_detox.remedies import BAD_INPUT

LAUNCHER = (__file__, str(Path(__file__).parents[1] / "__main__.py"), "<frozen runpy>")
"""Files of which there are frames above those of the script."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script that the arguments name, and return its exit code.

    Errors of the script end the process as they do without us.
    """
    asked = parse(sys.argv[1:] if arguments is None else arguments)
    os.environ.update(asked.variables)
    _check_settings()
    _check_script(asked)
    script = Script(asked.group_seed)
    finder = Finder(script)
    sys.meta_path.insert(0, finder)
    try:
        run(asked)
    except SystemExit as end:
        only_asked = finder.replaced and script.session is None  # as with --help
        if only_asked or end.code not in (None, 0):
            raise
    except BaseException:
        _hide_frames()
        raise
    finally:
        script.report()
    return _conclude(asked, script, finder)


def run(asked: Arguments) -> dict[str, object]:
    """Run the script as python itself does, and return its globals."""
    sys.argv = [asked.script, *asked.rest]
    if asked.is_module:
        return runpy.run_module(asked.script, run_name="__main__", alter_sys=True)
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(asked.script))
    # Not runpy.run_path, of which either __file__ is not absolute or sys.argv[0] always is.
    path = os.path.abspath(asked.script)
    main_module = sys.modules["__main__"] = ModuleType("__main__")
    main_module.__file__ = path
    exec(compile(Path(path).read_bytes(), path, "exec"), vars(main_module))
    return vars(main_module)


def _check_settings() -> None:
    """Refuse wrong settings before anything is started."""
    try:
        Detox.from_environment()
        if attack := os.environ.get(PREFIX + "ATTACK"):
            attacks.from_spec(attack)
    except ValueError as error:
        refuse(str(error))


def _check_script(asked: Arguments) -> None:
    """Refuse what cannot be started: no script, no Horovod."""
    if asked.is_module and not _is_module(asked.script):
        refuse(f"there is no module {asked.script}")
    if not asked.is_module and not os.path.isfile(asked.script):
        refuse(f"there is no script {asked.script} in {os.getcwd()}")
    if find_spec("horovod") is None:
        refuse(f"Horovod is not installed: {BUILD}")


def _is_module(name: str) -> bool:
    """Return whether there is a module to import, without importing more than its parents."""
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError as error:
        if f"{name}.".startswith(f"{error.name}."):
            return False
        raise


def _conclude(asked: Arguments, script: Script, finder: Finder) -> int:
    """Return the exit code of a script that ended well: bad input, when it trained unprotected."""
    by_itself = any(f"horovod_detox.{name}" in sys.modules for name in ("torch", "tensorflow"))
    if script.protected or (by_itself and not finder.replaced):
        return 0
    say(
        f"{asked.script} ended without a DistributedOptimizer or a DistributedGradientTape of "
        "horovod.torch, horovod.tensorflow or horovod.keras: nothing was protected"
    )
    return BAD_INPUT if process.rank() == 0 else 0


def _hide_frames() -> None:
    """Have tracebacks begin in the script, as they do without us."""
    write = sys.excepthook

    def write_rest(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        while trace and trace.tb_frame.f_code.co_filename in LAUNCHER:
            trace = trace.tb_next
        write(kind, error.with_traceback(trace), trace)

    sys.excepthook = write_rest
