"""The process behind `MathWorker`: one JSON request per line in, one JSON reply per line out.

A process of its own, because math-verify limits its time by signal alarms (main thread only) and sympy can neither be
interrupted from a thread nor be trusted to end. This file runs as a script and imports nothing of the library.
"""

from __future__ import annotations

import json
import sys


def equal(gold: str, answer: str) -> bool:
    """Whether two expressions are mathematically the same."""
    from math_verify import parse, verify

    def parsed(text: str) -> list:
        # Bare LaTeX is only recognised inside a math environment.
        return parse(f"${text}$", parsing_timeout=None) or parse(text, parsing_timeout=None)  # type: ignore[arg-type]

    return bool(verify(parsed(gold), parsed(answer), timeout_seconds=None))


def main() -> None:
    import math_verify  # the slow import, before the parent starts its clock

    print(json.dumps({"ready": math_verify.__name__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply: dict = {"equal": equal(request["gold"], request["answer"])}
        except Exception as error:  # noqa: BLE001 - any failure of the parser is an answer to the parent
            reply = {"error": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
