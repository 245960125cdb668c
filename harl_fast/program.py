"""What surrounds a program: a plain terminal, signals, errors in one line, exit codes."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TextIO

from harl_fast.errors import ConfigError, HarlError, explain, one_line, shown
from harl_fast.files import naming, to_stderr, try_write
from harl_fast.supervision import TOLD, answering

_INTERRUPTED = "interrupted: no file is left half-written"
_MOST_IMPORT_S, _AGAIN_S = 10.0, 0.05
_OF_IMPORTS = (ValueError, KeyError, RuntimeError, ImportError, MemoryError, SystemError)
"""What imports raise where an environment variable holds what a library does not take, or where a
limit keeps it from its memory."""
_VARIABLES = {
    "deepspeed": ("DS_",),
    "matplotlib": ("MATPLOTLIB", "MPL"),
    "numba": ("NUMBA_",),
    "torch": ("CUDA_", "PYTORCH_", "TORCH"),
}
"""What the names of the variables begin with that a library reads as it is imported."""
_GIVEN = frozenset(os.environ)
"""Names of the variables that a user may have set: later ones are set by libraries."""
_LAYERS = ("default", "safe", "threadsafe", "forksafe", "tbb", "omp", "workqueue")
_MOST_THREADS = 4096
LONGEST = 4000
"""Most characters of an error that are printed: a message can hold what a file holds."""


class PlainStream:
    """A text stream through which nothing reaches the terminal but what prints.

    Other characters become backslash escapes, and so do those that the stream's encoding lacks;
    line breaks and tabs pass. A carriage return passes at either end of a text, where it moves
    over a progress line only.
    """

    def __init__(self, stream: TextIO, name: str = "standard output") -> None:
        """name: for an `OSError`, such as that of a full disk."""
        self._stream, self._name = stream, Path(name)
        self._encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write a text with escapes; return its length as it was."""
        if not (text.isprintable() and text.isascii()):
            core = text.strip("\r")
            head, _, tail = text.partition(core) if core else (text, "", "")
            plain = "".join(c if c in "\n\t" else one_line(c) for c in core)
            safe = plain.encode(self._encoding, "backslashreplace").decode(self._encoding)
            shown = f"{head}{safe}{tail}"
        else:
            shown = text
        with naming(self._name):
            self._stream.write(shown)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        with naming(self._name):
            self._stream.flush()

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:  # the stream's own
        return getattr(self._stream, name)


def _complain(message: str) -> None:
    """Print an error; all but its first line are indented, see `HarlError`."""
    if len(message) > LONGEST:
        message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
    try_write(f"error: {message}\n", sys.stderr)


def run_main(main: Callable[[], int]) -> None:
    """Run a program's main and exit with its result; errors that a user can act on take one line.

    Exit codes: 2 on a `HarlError` or `OSError`, 130 on an interrupt, and 141, as a shell says it,
    where the reader of a pipe left. SIGTERM is an interrupt, and SIGHUP, a closed terminal, unless
    nohup had it ignored: temporary files are removed, and processes ended. Later ones do not
    disturb that.
    """
    code = _outcome(main)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        # Libraries that are leaving would print the trace of an exception; all is done.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)


@contextlib.contextmanager
def head(module: str, parse: Callable[[None], object]) -> Iterator[None]:
    """Surround a program's imports of large libraries, which take seconds.

    Where ``module``, a ``__name__``, is that of the program itself, ``parse`` answers --help and
    mistakes of its command line first. Then signals end the process at once: nothing is to be
    cleaned up yet, and libraries can swallow a KeyboardInterrupt while they are imported.
    """
    if module != "__main__":
        yield
        return
    with answering(signal.SIGINT, signal.SIGTERM, by=_leave):
        try:
            if code := _outcome(lambda: 0 * bool(parse(None))):
                sys.exit(code)
            gc.disable()  # what is imported stays: to look it through takes 0.5 s, again and again
            yield
            gc.freeze()
        except _OF_IMPORTS as error:
            if not (text := _of_environment(error)):
                raise
            _complain(text)
            sys.exit(2)
        finally:
            gc.enable()


def _leave(number: int, frame: FrameType | None) -> None:
    to_stderr(_INTERRUPTED)
    os._exit(130)


def _outcome(main: Callable[[], int]) -> int:
    """Return a program's exit code, see `run_main`."""
    _fill_closed_streams()
    with _interrupts() as end, _plain_streams():
        try:
            try:
                _check_folder()
                _check_names()
                _check_threads()
                _check_options(sys.argv[1:])
                code = main()
            finally:
                end()
            sys.stdout.flush()
        except HarlError as error:
            _complain(str(error))
            code = 2
        except BrokenPipeError:
            code = 128 + signal.SIGPIPE
        except OSError as error:
            _complain(explain(error))
            code = 2
        except _OF_IMPORTS as error:
            if not (text := _of_environment(error)):
                raise
            _complain(text)
            code = 2
        except KeyboardInterrupt as stop:
            if TOLD not in stop.args:
                to_stderr(_INTERRUPTED)
            code = 130
    _settle_output()
    return code


def _check_folder() -> None:
    """Raise HarlError if the working folder was deleted: numpy's and torch's libraries abort."""
    try:
        os.getcwd()
    except OSError as error:
        raise HarlError(
            f"the folder that this was started in is gone ({error.strerror}): `cd` to one that is "
            f"there, then run the command again"
        ) from error


def _check_names() -> None:
    """Raise ConfigError where names of files are not read as UTF-8, but would be garbled."""
    if (encoding := sys.getfilesystemencoding()) != "utf-8":
        locale = [name for name in ("LC_ALL", "LC_CTYPE", "LANG") if os.environ.get(name)][:1]
        found = [name for name in ("PYTHONUTF8", *locale) if name in os.environ]
        named = [f"{name}={shown(os.environ[name])}" for name in found]
        raise ConfigError(
            f"names of files are read as {encoding} here, not as UTF-8 (by {', '.join(named)} in "
            f"the environment): set PYTHONUTF8=1, then run the command again"
        )


def _check_options(words: Sequence[str]) -> None:
    """Raise ConfigError for ``--option=--``, of which argparse makes an empty list, unread."""
    for word in itertools.takewhile(lambda word: word != "--", words):
        name, _, value = word.partition("=")
        if name.startswith("--") and value == "--":
            raise ConfigError(f"argument {shown(name)}: '--' is no value")
        if not word:
            raise ConfigError(
                "one of the arguments is an empty text, which would mean the current folder: is a "
                'variable of the shell, as in "$DATA", not set?'
            )


def _check_threads() -> None:
    """Raise ConfigError for what numba warns of at length, dies of, or refuses at its first use."""
    text = os.environ.get("NUMBA_NUM_THREADS", "1")
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= _MOST_THREADS):
        raise ConfigError(
            f"the environment variable NUMBA_NUM_THREADS is {shown(text)}: set a whole number from "
            f"1 to {_MOST_THREADS}, or unset it"
        )
    layer = os.environ.get("NUMBA_THREADING_LAYER", _LAYERS[0])
    if layer not in _LAYERS:
        raise ConfigError(
            f"the environment variable NUMBA_THREADING_LAYER is {shown(layer)}: set one of "
            f"{', '.join(_LAYERS)}, or unset it"
        )


def _of_environment(error: Exception) -> str:
    """Return what to say of a library that cannot be imported for what a variable holds, or "".

    Of a variable that the error names, or quotes, or that the library reads. Libraries also take
    gigabytes of addresses, of which shared machines may allow fewer.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if isinstance(error, ImportError | MemoryError | SystemError):
        if limit == resource.RLIM_INFINITY or isinstance(error, ModuleNotFoundError):
            return ""
        return (
            f"{one_line(str(error)) or 'out of memory'}: the limit `ulimit -v` is "
            f"{limit / 1e9:.1f} GB here: run the command under a higher one, such as unlimited"
        )
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    # Code that torch compiles runs as a module, too, which is not imported and has no spec.
    imported = any(
        frame.f_code.co_name == "<module>"
        and frame.f_globals["__name__"] != "__main__"
        and frame.f_globals.get("__spec__") is not None
        for frame in frames
    )
    if not imported or Path(frames[-1].f_code.co_filename).is_relative_to(Path(__file__).parent):
        return ""
    packages = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames]
    last = max((i for i, package in enumerate(packages) if package in _VARIABLES), default=-1)
    said, prefixes = str(error).strip(), tuple(itertools.chain(*_VARIABLES.values()))
    given = {name: os.environ[name] for name in _GIVEN if name in os.environ}
    known = {name: text for name, text in given.items() if name.startswith(prefixes)}
    blamed = (
        [name for name in known if name in said]
        or [name for name, text in known.items() if repr(text) in said]
        or [name for name in known if name.startswith(_VARIABLES.get(packages[last], ()))]
    )
    if not blamed:
        return ""
    file = one_line(frames[last].f_code.co_filename)
    values = ", ".join(f"{name}={shown(known[name])}" for name in sorted(blamed))
    return (
        f"{file}: {shown(said)} as it was imported. It may be for {values} in the environment: "
        f"set a value that it takes, or unset it"
    )


def _tell_early_interrupt(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Tell of an interrupt before `run_main` in one line: a program's imports take seconds.

    Libraries raise errors of their own for it, which quote it: pydantic does.
    """
    if issubclass(kind, KeyboardInterrupt):
        to_stderr(_INTERRUPTED)
    elif "KeyboardInterrupt" in str(error):
        _leave(signal.SIGINT, None)
    else:
        sys.__excepthook__(kind, error, trace)


if sys.excepthook is sys.__excepthook__:
    sys.excepthook = _tell_early_interrupt


def _fill_closed_streams() -> None:
    """Open /dev/null where the shell closed a stream: the next file would get its number."""
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # kept


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], None]]:
    """Raise KeyboardInterrupt on a signal that ends a program; further ones spare its clean-up.

    Code that is being imported makes other errors of it, and code that C calls swallows it: it
    waits until an import is there, for some seconds, and is raised again until it takes effect.
    Yields what is to be called at the program's end: it raises one that still waits, and none is
    raised from there on.
    """
    first_s, raised, over = math.inf, False, False
    left, sending = threading.Event(), threading.Lock()

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal first_s, raised
        if first_s == math.inf:
            first_s = time.monotonic()
            threading.Thread(target=repeat, args=(number,), daemon=True).start()
        late = time.monotonic() - first_s > _MOST_IMPORT_S
        if not over and not _cleans_up() and (late or not _imports(frame)):
            raised = True
            raise KeyboardInterrupt

    def end() -> None:
        nonlocal over
        over = first_s < math.inf
        if over and not raised:
            raise KeyboardInterrupt

    def repeat(number: int) -> None:
        while not left.is_set():
            time.sleep(_AGAIN_S)
            with sending:  # or the last might come when nothing answers it any more
                if not left.is_set():
                    os.kill(os.getpid(), number)

    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    with answering(signal.SIGTERM, *[signal.SIGINT] * (not ignored), by=interrupt):
        try:
            yield end
        finally:
            with sending:
                left.set()


def _cleans_up() -> bool:
    """Return whether a KeyboardInterrupt is on its way: what runs now handles it."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _imports(frame: FrameType | None) -> bool:
    """Return whether an import is under way in a frame."""
    frames = (each for each, _ in traceback.walk_stack(frame))
    return frame is not None and any("importlib._bootstrap" in f.f_code.co_filename for f in frames)


@contextlib.contextmanager
def _plain_streams() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout = PlainStream(sys.stdout)
    sys.stderr = PlainStream(sys.stderr, "standard error")
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _settle_output() -> None:
    """Drop what is left for standard output if it does not take it, or exiting would fail."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
