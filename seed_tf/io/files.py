"""Files that are written whole or not at all, and read with care."""

import contextlib
import json
import os


@contextlib.contextmanager
def atomic_write(path):
    """Gives the path of a file to write, which takes the place of `path`.

    Readers of `path` see the old file or the whole new one, also after a
    crash. The ending stays, as Keras insists on it.
    """
    stem, ending = os.path.splitext(path)
    unfinished = f"{stem}.unfinished{ending}"
    try:
        yield unfinished
        flush(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(unfinished)
        raise


def read_json_lines(path):
    """The lines of a `MetricsLog`, as dicts; none if there is no file.

    A last line that a killed process left unfinished is left out.
    """
    lines = []
    if os.path.exists(path):
        with open(path) as f:
            for line in f:
                try:
                    lines.append(json.loads(line))
                except json.JSONDecodeError:
                    break
    return lines


def flush(path):
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def reason(error):
    return str(getattr(error, "strerror", None) or error).splitlines()[0]
