"""The commands of cluster/README.md: each can be parsed, and names what exists.

kubectl is asked for its own flags; `quantile` parses its own arguments; aws is held against
botocore's models; bash reads the syntax, and every variable is set before it is used. Of eksctl,
helm, docker, git and curl only the files that they name are looked at.
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from cluster.check.aws import check_aws
from cluster.check.fault import ManifestError, UncheckedError
from cluster.check.render import CLUSTER, ROOT, kubectl
from cluster.check.variables import check_variables

README = CLUSTER / "README.md"
OTHERS = {"curl", "docker", "eksctl", "export", "git", "helm", "openssl"}
_TREE = """
import json, typer
from serve_app import cli
cli._mount()
def walk(node, path):
    if hasattr(node, "commands"):
        for name, each in node.commands.items():
            yield from walk(each, f"{path} {name}".strip())
    else:
        yield path, sorted({option for each in node.params for option in each.opts})
print(json.dumps(dict(walk(typer.main.get_command(cli.app), ""))))
"""
_BLOCK = re.compile(r"^```(?:bash|sh)\n(.*?)^```", re.M | re.S)
_INNER = re.compile(r"\$\(([^()]*)\)")
_PATH = re.compile(r"^(?:\./)?(?:cluster|configs|loadtests|\.ci)/[\w./-]+$")


def blocks(text: str) -> list[str]:
    """The shell blocks of a Markdown file."""
    return _BLOCK.findall(text)


def commands(text: str) -> Iterator[str]:
    """Each command of the blocks: continued lines joined, pipes and `&&` taken apart, and those
    inside `$(...)` too."""
    for block in blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            stripped = line.strip()
            if stripped and not stripped.startswith("#"):
                yield from (part for part in _parts(stripped) if part)
                for inner in _INNER.findall(stripped):
                    yield from (part for part in _parts(inner) if part)


def check_commands(text: str) -> str:
    """Raises ManifestError for a command that cannot be right."""
    for block in blocks(text):
        done = subprocess.run(
            ["bash", "-n"], input=block, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ManifestError(f"README: bash says {done.stderr.strip()} of\n{block}")
    found = list(commands(text))
    unchecked = []
    for command in found:
        try:
            _check(command)
        except UncheckedError as why:
            unchecked.append(str(why))
    if unchecked:
        raise UncheckedError("; ".join(unchecked))
    if not found:
        raise ManifestError("README: no command was found")
    return f"{len(found)} commands, {check_variables(blocks(text))}"


def _check(command: str) -> None:
    words = [word for word in shlex.split(command, comments=True) if word]
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if not words:
        return
    program, arguments = words[0], words[1:]
    for word in arguments:
        path = word.rpartition("=")[2]
        if _PATH.match(path) and not (ROOT / path).exists():
            raise ManifestError(f"README: {command!r} names {path}, which is not there")
    if program == "kubectl":
        _kubectl(arguments, command)
    elif program in {"quantile", "python"}:
        _python(program, arguments, command)
    elif program == "aws":
        check_aws(arguments, command)
    elif program == "make":
        _make(arguments, command)
    elif program.startswith("cluster/"):
        _script(ROOT / program, command)
    elif program not in OTHERS:
        raise ManifestError(f"README: {command!r}: {program} is no program that it may use")


def _kubectl(arguments: list[str], command: str) -> None:
    if "--" in arguments:  # what `exec` runs
        inner = arguments.index("--")
        _check(shlex.join(arguments[inner + 1 :]))
        arguments = arguments[:inner]
    plain = [word for word in arguments if not word.startswith("-")]
    flags = {word.split("=")[0] for word in arguments if re.match(r"--?[a-z]", word)}
    verbs = [word for word in plain if word not in {"quantile", "monitoring", "kuberay-system"}]
    deeper = {("create", "secret"): 3, ("create", "namespace"): 2, ("rollout", "status"): 2}
    depth = deeper.get(tuple(verbs[:2]), min(len(verbs), 1))
    if not depth:
        raise ManifestError(f"README: {command!r} has no verb")
    known = kubectl_flags(tuple(verbs[:depth]))
    if unknown := sorted(flags - known):
        raise ManifestError(f"README: {command!r}: kubectl {verbs[0]} has no {', '.join(unknown)}")


@cache
def kubectl_flags(verb: tuple[str, ...]) -> frozenset[str]:
    """Every flag that kubectl itself names for a verb, short ones too."""
    shown = ""
    for asked in ([*verb, "--help"], ["options"]):
        done = subprocess.run([kubectl(), *asked], capture_output=True, text=True, check=False)
        if done.returncode or (
            asked[0] != "options" and f"kubectl {' '.join(verb)}" not in done.stdout
        ):
            raise ManifestError(f"README: kubectl has no command {' '.join(verb)}")
        shown += done.stdout
    long = re.findall(r"^\s+(?:(-\w), )?(--[\w-]+)=", shown, re.M)
    return frozenset(flag for pair in long for flag in pair if flag)


def _python(program: str, arguments: list[str], command: str) -> None:
    if program == "python":
        if arguments[:2] != ["-m", "cluster.check"]:
            raise ManifestError(f"README: {command!r} runs no module of ours")
        return
    rest, path = list(arguments), ""
    tree = quantile_options()
    while rest and path not in tree and not rest[0].startswith("-"):
        path = f"{path} {rest.pop(0)}".strip()
        if not any(f"{known} ".startswith(f"{path} ") for known in tree):
            break
    if path not in tree:
        raise ManifestError(
            f"README: {command!r}: quantile has no command {' '.join(arguments[:2])}"
        )
    wrong = [word for word in rest if word.startswith("-") and word.split("=")[0] not in tree[path]]
    if wrong:
        raise ManifestError(f"README: {command!r}: no option {', '.join(wrong)}")


@cache
def quantile_options() -> dict[str, list[str]]:
    """Options of each command of `quantile`, by its words; read in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _TREE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UncheckedError(f"quantile does not start: {done.stderr.strip()[-300:]}")
    tree: dict[str, list[str]] = json.loads(done.stdout)
    return tree


def _make(arguments: list[str], command: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = [word for word in arguments if "=" not in word]
    if missing := [word for word in named if word not in targets]:
        raise ManifestError(f"README: {command!r}: no target {', '.join(missing)} in the Makefile")


def _script(file: Path, command: str) -> None:
    if not file.is_file() or not file.stat().st_mode & 0o100:
        raise ManifestError(f"README: {command!r}: {file} is no program")
    done = subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ManifestError(f"{file}: {done.stderr.strip()}")


def _parts(line: str) -> list[str]:
    """A line without quoted text split at pipes and `&&`; bash has read its syntax already."""
    lexer = shlex.shlex(line, posix=False, punctuation_chars="|&;")
    lexer.whitespace_split = True
    parts: list[str] = []
    current: list[str] = []
    for token in lexer:
        if set(token) <= set("|&;"):
            parts.append(" ".join(current))
            current = []
        else:
            current.append(token)
    return [*parts, " ".join(current)]
