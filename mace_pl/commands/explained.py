"""What a parser has to say about the settings that it was given, in one line that says what to do."""

from __future__ import annotations

import inspect
import pydoc
import re
from collections.abc import Iterable, Iterator

from jsonargparse import ArgumentError

from mace_pl import methods
from mace_pl.errors import UserError, install, nearest, one_line

#: options that people look for and that are called otherwise here
INSTEAD = {
    "ckpt_path": "No checkpoint of Lightning is read: a run resumes by itself when its command is given again.",
    "weights_only": "No checkpoint of Lightning is read: a run resumes by itself when its command is given again.",
}


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    seen: set[int] = set()
    left = [error]
    while left:
        cause = left.pop(0)
        if id(cause) not in seen:
            seen.add(id(cause))
            left += [e for e in (cause.__cause__, cause.__context__) if e is not None]
            yield cause


def missing_package(error: BaseException) -> UserError | None:
    """What to say where a class that the user has named wants a package that is not installed; None elsewhere."""
    owner = re.search(r"class_path '([\w.]+)'", str(error))
    missing = next((cause for cause in causes(error) if isinstance(cause, ModuleNotFoundError)), None)
    if owner is None or missing is None:
        return None
    what = install("logging") if "tensorboard" in str(missing).casefold() else one_line(missing)
    return UserError(f"{owner[1]} wants a package that is not installed. {what}")


def explained(error: ArgumentError, known: Iterable[str]) -> str:
    """An error of the parser in one line, with the nearest key that exists where one does not."""
    message, names = one_line(error), list(known)
    said = no_group(message, names) or missing_class(message) or missing_options(message, names)
    if said:
        return said
    owner = re.search(r"class_path '([\w.]+)'", str(error))
    if owner is not None:  # the keys are those of a class that the user has named
        located = pydoc.locate(owner[1])
        names += list(inspect.signature(located).parameters) if callable(located) else []
    unknown = [
        *(".".join(found) for found in re.findall(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)),
        *re.findall(r"[Oo]ption '([\w.]+)'", message),
        *re.findall(r"--([\w.]+)", message.partition("unrecognized arguments:")[2]),
    ]
    nested = re.search(r'Parser key "([\w.]+)".*NestedArg\(key=\'([\w.]+)\', val=(.*)\)', str(error), re.DOTALL)
    if not unknown and nested is not None:  # a setting of a class that the user has named
        return f"{nested[1]}.{nested[2]}={nested[3]} is not of the type of this setting."
    if not unknown:
        return of_type(message)
    where = f" in {owner[1]}" if owner is not None else ""
    more = INSTEAD.get(unknown[0], "") or nearest(unknown[0], names) or beside(unknown[0], names)
    return f"{unknown[0]} does not exist{where}. {more.strip()}"


def no_group(message: str, known: Iterable[str]) -> str:
    """One line about a single value in place of a group of settings; empty elsewhere."""
    given = re.search(r"""Parser key "([\w.]+)": Unable to load config '(.*?)'""", message) or re.search(
        r'Parser key "([\w.]+)".* Not a valid subclass of .*Given value: ?([^{}]*)$', message
    )
    if given is None:
        given = re.search(r'Parser key "([\w.]+)".*dot import path string: (\d[\w.]*|true|false)', message)
    if given is None:
        return ""
    own = [name.removeprefix(f"{given[1]}.") for name in known if name.startswith(f"{given[1]}.")]
    which = f" Choose from {', '.join(own)}." if own else ""
    return f"{given[1]}={given[2]} is no group of settings. Give each by its name, as --{given[1]}.NAME VALUE.{which}"


def beside(unknown: str, names: Iterable[str]) -> str:
    """What there is in the group of a setting that does not exist; where to look, when it has none."""
    group = unknown.rpartition(".")[0]
    own = [name for name in names if group and name.rpartition(".")[0] == group]
    return f"Choose from {', '.join(own)}." if own else "All that exist are in docs/options.md, and in --help.all."


def missing_options(message: str, known: Iterable[str]) -> str:
    """One line about options that are required, as a user types them; empty where all are given.

    Args:
        message: of the parser, which names the command of an option too, as in ``attack.data.names``.
        known: all options; others are words without a name.
    """
    required = re.search(r"arguments are required: (.+)", message)
    if required is None:
        return ""
    typed = []
    for name in required[1].split(", "):
        own = name if name in known else name.partition(".")[2]
        typed.append(f"--{own}" if own in known else name)
    return f"give what is required: {', '.join(typed)}"


#: types as people call them
CALLED = {"float": "a finite number", "int": "a whole number", "bool": "true or false", "str": "a text"}
CALLED |= {"NoneType": "null", "dict": "a mapping", "list": "a list"}


def of_type(message: str) -> str:
    """Jsonargparse's line about a value of another type, in words; any other as it is."""
    file = re.fullmatch(r"Parser key \"([\w.]+)\": File does not exist: '(.*)'", message)
    if file is not None:
        return f"--{file[1]} {file[2]}: there is no such file."
    one = re.fullmatch(r"Parser key \"([\w.]+)\": Expected a <class '(\w+)'>\. Got value: ?(.*)", message)
    if one is not None and one[2] in CALLED:
        return f"{one[1]}={one[3]} must be {CALLED[one[2]]}."
    choice = re.fullmatch(r"Parser key \"([\w.]+)\": Expected a typing\.Literal\[(.*)\]\. Got value: ?(.*)", message)
    if choice is not None:
        return f"{choice[1]}={choice[3]} must be one of {choice[2].replace(chr(39), '')}."
    many = re.fullmatch(
        r'Parser key "([\w.]+)": Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors: '
        r".*Given value: ?(.*)",
        message,
    )
    if many is None:
        return message
    types = re.sub(r"<class '(?:\w+\.)*(\w+)'>", lambda found: CALLED.get(found[1], found[1]), many[2])
    types = types.replace("dict[str, list[str]]", "lists of texts by name, as in {ship: [boat]}")
    return f"{many[1]}={many[3]} must be one of: {types.replace('list[str]', 'a list of texts, as [ship, dog]')}."


def missing_class(message: str) -> str:
    """One line about a class that cannot be found, with the closed forms that exist; empty where all are found."""
    key = re.search(r'Parser key "([\w.]+)"', message)
    paths = re.search(r"dot import path string: ([\w.]+)|class_path '(\w+\.[\w.]+)'", message)
    path = (paths[1] or paths[2]) if paths else ""
    if key is None or not path or pydoc.locate(path) is not None:
        return ""
    if not key[1].startswith("model.method"):
        return f"{key[1]}: there is no class {path}. Give one that can be imported, as package.module.Name."
    exist = [name for name in methods.__all__ if name != "ClosedForm"]
    return (
        f"{key[1]}: there is no class {path}.{nearest(path, exist)} Choose from {', '.join(exist)}, or "
        f"give your own as package.module.Name."
    )
