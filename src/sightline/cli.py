"""The command line: finds the command, lets tyro read its options, runs it, and turns bad input into one line.

A command is a dataclass in `sightline/commands/` whose fields are its options and whose `run` does the work. Only the
module of the chosen command is imported, and it imports torch inside `run`, so every help page is quick.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sightline.errors import SightlineError, UserError

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = ["COMMANDS", "main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("train:Train", "train a recipe; the same command again resumes the run"),
    "eval": ("evaluation:Evaluate", "accuracy, IoU, region and format of a policy, by mode, with 95 % intervals"),
    "eval compare": ("evaluation:Compare", "two evaluation tables, record by record"),
    "attention calibrate": ("attention:Calibrate", "which heads look at the evidence: a ranking and a list for probes"),
    "ask": ("ask:Ask", "ask a policy about an image"),
    "data scenes": ("data:Scenes", "write scenes of the embedded world as PNG files and JSONL"),
    "data check": ("data:Check", "check a data file row by row"),
    "data preview": ("data:Preview", "show records with their pictures and boxes"),
    "doctor": ("doctor:Doctor", "check a recipe before it runs: what would go wrong, and what to type"),
    "export": ("export:Export", "write a trained policy as a folder that transformers and vLLM load"),
    "report": ("report:Report", "rebuild the page of a run"),
    "recipe ls": ("recipe:List", "list the recipes"),
    "recipe show": ("recipe:Show", "print a recipe with every default filled in"),
    "recipe copy": ("recipe:Copy", "copy a recipe to a file of your own"),
    "recipe diff": ("recipe:Diff", "the keys in which two recipes differ"),
    "score": ("score:ScoreFile", "score logged rollouts again: every term, total and advantage"),
    "archive stats": ("archive:Stats", "size, age and ranks of a run's archive of references"),
    "archive show": ("archive:Show", "print the references of a run's archive"),
    "archive export": ("archive:Export", "write the references of a run's archive as JSONL"),
    "play": ("play:Play", "be the policy: type a reply, see its reward breakdown"),
    "serve-help": ("serve_help:ServeHelp", "the commands that start vLLM servers for a recipe"),
    "scenes build-policy": ("scenes:BuildPolicy", "train the embedded policy from nothing"),
}
OVERRIDABLE = (
    "train",
    "doctor",
    "play",
    "score",
    "recipe show",
    "recipe diff",
    "serve-help",
)  # take `--section.key value` beside their own options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 2 bad input, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "" not in sys.path and os.getcwd() not in sys.path:
        # own methods and readers stand beside the recipe; last, so that a file there never hides an installed module
        sys.path.append(os.getcwd())
    if not words or (words[-1] in ("-h", "--help") and words[:-1] in ([], *_groups())):
        print(_overview(words[0] if len(words) > 1 else ""))
        return 0
    if words[0] == "--version":
        from sightline import __version__

        print(f"sightline {__version__}")
        return 0
    command: Any = None
    try:
        command = _parse(words)
        return command.run()
    except UserError as error:
        return _refused(error.line, error.rows)
    except (SightlineError, FloatingPointError) as error:  # the latter: training diverged
        return _refused(str(error))
    except KeyboardInterrupt:
        again = command.resume() if hasattr(command, "resume") else f"sightline {shlex.join(words)}"
        print(f"\ninterrupted; to go on: {again}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a file or folder named by the user that cannot be read or written
        place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return _refused(f"{place}{error.strerror or str(error) or type(error).__name__}")


def _refused(message: str, rows: Sequence[str] = ()) -> int:
    plain = ["".join(c if c.isprintable() else " " for c in line) for line in (message, *rows)]  # names come from data
    print("error:", " ".join(plain[0].split()), file=sys.stderr)
    for row in plain[1:]:
        print(f"  {row}", file=sys.stderr)
    return 2


def _parse(words: list[str]) -> Any:
    name = next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in COMMANDS), None)
    if name is None:
        raise _unknown(words)
    import tyro
    from pydantic import ValidationError

    module, _, attribute = COMMANDS[name][0].partition(":")
    kind = getattr(import_module(f"sightline.commands.{module}"), attribute)
    rest, prog = words[len(name.split()) :], f"sightline {name}"
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName)
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            if name not in OVERRIDABLE:
                return tyro.cli(kind, prog=prog, args=rest, config=config)
            command, unknown = tyro.cli(kind, prog=prog, args=rest, config=config, return_unknown_args=True)
    except ValidationError as error:
        raise _misfit(error, rest) from error
    except SystemExit as end:
        wrapped = end.__context__ and end.__context__.__context__  # of settings within settings
        if isinstance(wrapped, ValidationError):
            raise _misfit(wrapped, rest) from wrapped
        if end.code in (0, None):
            raise  # the help page was asked for
        raise UserError(_boxed(told.getvalue()), hint=f"{prog} --help") from end
    return replace(command, overrides=tuple(unknown))


def _boxed(text: str) -> str:
    """What a box in the terminal says, without its title, frame, help texts and all that follows its first rule.

    Example:
        >>> _boxed("╭ Required ──╮\\n│ Missing:   │\\n│     IMAGE  │\\n│         Help. │\\n│ ────────── │\\n│ More │")
        'Missing: IMAGE'
    """
    told: list[str] = []
    for line in text.splitlines()[1:]:
        content = line.strip("│ ")
        if not set(content) <= set("─-"):
            told.append(line.strip("│").rstrip())
        elif told:
            break
    outermost = min((len(line) - len(line.lstrip()) for line in told), default=0)
    said = [line.strip() for line in told if len(line) - len(line.lstrip()) <= outermost + 4]
    return " ".join(said).removeprefix("Error parsing ").rstrip(".") or "the options do not fit"


def _misfit(error: ValidationError, words: Sequence[str]) -> UserError:
    """The first value that does not fit, by the option as it was typed."""
    first = error.errors()[0]
    name = "-".join(map(str, first["loc"])).replace("_", "-")
    typed = (word.partition("=")[0] for word in words if word.startswith("--"))
    where = next((w for w in typed if name and re.split(r"--|\.", w.replace("_", "-"))[-1] == name), "")
    return UserError(first["msg"].removeprefix("Value error, "), where=where)


def _unknown(words: list[str]) -> UserError:
    from difflib import get_close_matches

    group = [name for name in COMMANDS if name.split()[0] == words[0]]
    if group:
        return UserError(f"sightline {words[0]} needs one of: {', '.join(name.split()[-1] for name in group)}")
    near = get_close_matches(words[0], {name.split()[0] for name in COMMANDS}, n=1)
    hint = f"did you mean 'sightline {near[0]}'?" if near else "sightline --help lists the commands"
    return UserError(f"unknown command {words[0]!r}", hint=hint)


def _groups() -> list[list[str]]:
    """First words that are no command by themselves, such as `data`."""
    return [[name.split()[0]] for name in COMMANDS if name.split()[0] not in COMMANDS]


def _overview(group: str = "") -> str:
    names = [name for name in COMMANDS if name.startswith(group)]
    width = max(map(len, names)) + 2
    lines = [f"  {name:<{width}}{COMMANDS[name][1]}" for name in names]
    return "\n".join(
        [
            "sightline: post-train multimodal LLMs to reason from what they see.",
            "",
            "  sightline train demo              a first run, a few minutes on a laptop",
            "  sightline COMMAND --help          the options of a command",
            "",
            *lines,
        ]
    )
