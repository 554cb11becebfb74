"""`unimodal ledger …`: what each of its commands does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from unimodal.command.ledger_words import exactly, number, read, switch, whole
from unimodal.errors import UsageError
from unimodal.history import runs, words
from unimodal.history.effects import effects
from unimodal.history.importance import fishers
from unimodal.history.measure import Measuring
from unimodal.history.page import Step, write_page
from unimodal.history.search import Found, best_scale, bisect
from unimodal.ledger import Commit, Ledger, changes, compare, exchange
from unimodal.ledger.ledger import MAIN
from unimodal.ledger.upkeep import gc, verify

EXIT_DAMAGED = 2
Flags = dict[str, str]


def run_ledger(arguments: Sequence[str], program: str) -> int:
    """Run what stands behind `ledger`; returns the exit code. Raises UsageError."""
    command, given, flags = read(arguments, program)
    commands: Mapping[str, tuple[int, int | None, Callable[[list[str], Flags], int]]] = {
        "init": (1, 1, run_init),
        "commit": (2, 2, run_commit),
        "branch": (1, 3, run_branch),
        "log": (1, None, run_log),
        "show": (2, 2, run_show),
        "diff": (3, 3, run_diff),
        "checkout": (3, 3, run_checkout),
        "revert": (2, 2, run_revert),
        "cherry-pick": (2, 2, run_cherry_pick),
        "merge": (2, None, run_merge),
        "bisect": (1, 1, run_bisect),
        "verify": (1, 1, run_verify),
        "gc": (1, 1, run_gc),
        "push": (2, None, run_push),
        "pull": (2, None, run_pull),
    }
    least, most, run = commands[command]
    exactly(given, least, most, command, program)
    return run(given, flags)


def run_init(given: list[str], flags: Flags) -> int:
    ledger = Ledger.create(given[0], flags.get("tensors"))
    print(f"a ledger in {ledger.path}: history in {ledger.git.folder.name}, tensors in {ledger.store.root}")
    return 0


def run_commit(given: list[str], flags: Flags) -> int:
    ledger, measuring = opened(given)
    finish = {"finish": measuring.scored} if switch(flags, "evaluate", False) else {}
    before = stored(ledger)
    made = runs.commit(
        ledger, given[1], flags.get("m", ""), flags.get("branch", MAIN), step=whole(flags, "step", None), **finish
    )
    whole_size = sum(entry.bytes for entry in made.manifest.tensors.values())
    print(f"{made.short} {made.subject}")
    print(f"{len(made.manifest.tensors)} tensors, {words.size(whole_size)}; new: {words.size(stored(ledger) - before)}")
    return 0


def run_branch(given: list[str], _flags: Flags) -> int:
    ledger = Ledger(given[0])
    if len(given) == 1:
        print("\n".join(words.table([(name, commit[:10]) for name, commit in sorted(ledger.heads().items())])))
        return 0
    commit = ledger.branch(given[1], given[2] if len(given) > 2 else MAIN)
    print(f"{given[1]} is at {commit[:10]}")
    return 0


def run_log(given: list[str], flags: Flags) -> int:
    ledger, measuring = opened(given)
    commits = ledger.history(given[1:], whole(flags, "limit", None))
    if not commits:
        raise UsageError(f"{ledger.path} has no commits yet")
    print("\n".join(words.log_lines(commits, named(ledger))))
    if "page" in flags:
        draw(Path(flags["page"]), commits, measuring, switch(flags, "evaluate", True))
    return 0


def run_show(given: list[str], _flags: Flags) -> int:
    ledger = Ledger(given[0])
    commit = ledger.commit(given[1])
    manifest = commit.manifest
    print(f"commit {commit.id}\nby {commit.author}, {words.day(commit.when)}\n\n{commit.message}\n")
    for name, value in (("parents", " ".join(p[:10] for p in commit.parents)), ("step", manifest.step)):
        print(f"{name}: {'none' if value in (None, '') else value}")
    print(f"made by: {json.dumps(manifest.made)}")
    for task, said in manifest.data.items():
        print(f"data of {task}: {json.dumps(said)[:300]}")
    for path in commit.names:
        if path.startswith("scores/"):
            found = commit.json(path)
            print(
                f"{path.removeprefix('scores/').removesuffix('.json')}: {found['metric']} {words.short(found['value'])}"
            )
    total = sum(entry.bytes for entry in manifest.tensors.values())
    print(f"{len(manifest.tensors)} tensors, {words.size(total)}")
    rows = [(name, entry.spelt, "·".join(entry.axes), entry.chunks[0][:10]) for name, entry in manifest.tensors.items()]
    print("\n".join(f"  {line}" for line in words.table(rows)))
    return 0


def run_diff(given: list[str], flags: Flags) -> int:
    ledger, measuring = opened(given)
    before, after = ledger.commit(given[1]), ledger.commit(given[2])
    changed = compare.changes(before, after)
    count = whole(flags, "tensors", 20)
    print("\n".join(words.change_lines(changed, 20 if count is None else count)))
    ask = switch(flags, "evaluate", before.manifest.source == after.manifest.source == "run")
    found = effects(measuring, before, after, ask=ask)
    print("\n".join(["", *words.effect_lines(found)]))
    if "page" in flags:
        refs = named(ledger)
        steps = [
            Step(after, refs.get(after.id, ()), measuring.known(after), found, changed),
            Step(before, refs.get(before.id, ()), measuring.known(before)),
        ]
        write_page(Path(flags["page"]), f"{before.short} and {after.short}", steps, facts_of(ledger, 2))
        print(f"wrote {flags['page']}")
    return 0


def run_checkout(given: list[str], _flags: Flags) -> int:
    commit = Ledger(given[0]).commit(given[1])
    path = runs.checkout(commit, given[2])
    moments = "; the optimizer's moments begin anew" if commit.manifest.source == "run" else ""
    print(f"commit {commit.short} ({commit.subject}) is in {path}{moments}")
    return 0


def run_revert(given: list[str], flags: Flags) -> int:
    ledger, measuring = opened(given)
    made = changes.revert(ledger, given[1], flags.get("branch", MAIN), flags.get("m"))
    return told(measuring, made, flags)


def run_cherry_pick(given: list[str], flags: Flags) -> int:
    ledger, measuring = opened(given)
    scale = number(flags, "scale", 1.0)
    made = changes.cherry_pick(ledger, given[1], flags.get("branch", MAIN), flags.get("m"), scale)
    return told(measuring, made, flags)


def run_merge(given: list[str], flags: Flags) -> int:
    ledger, measuring = opened(given)
    branch, refs = flags.get("branch", MAIN), given[1:]
    how = changes.Merging(
        flags.get("method", "task_arithmetic"), number(flags, "scale", 1.0), number(flags, "keep", 0.2)
    )
    # Resolved once: a run may commit while scales or Fishers are measured.
    commits = [ledger.commit(ref) for ref in (f"refs/heads/{branch}", *refs)]
    given_base = ledger.resolve(flags["base"]) if "base" in flags else None
    searched = None
    if "search" in flags:
        base = ledger.commit(given_base) if given_base else ledger.base([commit.id for commit in commits])
        scales = [number({"search": text}, "search", 0.0) for text in flags["search"].split(",")]
        with ledger.writing():
            searched = best_scale(measuring, commits, base, how, scales, print)
        how = changes.Merging(how.method, searched.scale, how.keep)
    if how.method == "fisher":
        how = changes.Merging(how.method, fishers=fishers(measuring, commits, whole(flags, "batches", 16) or 1))
    made, conflicts = changes.merge(ledger, refs, branch, how, message=flags.get("m"), base=given_base, commits=commits)
    print("\n".join(words.conflict_lines(conflicts)) or "no branch moved what another did in the opposite direction")
    return told(measuring, made, flags, searched)


def run_bisect(given: list[str], flags: Flags) -> int:
    _, measuring = opened(given)
    for name in ("task", "good"):
        if name not in flags:
            raise UsageError(f"--{name} is missing: which task broke, and a commit at which it was well")
    limit = number(flags, "limit", 0.0) if "limit" in flags else None
    found = bisect(measuring, flags["good"], flags.get("bad", MAIN), flags["task"], limit, print)
    print(f"\n{found.commit.short} broke {flags['task']}: {found.commit.subject} ({found.asked} commits were asked)")
    print("\n".join(words.effect_lines(found.effects)))
    return 0


def run_verify(given: list[str], _flags: Flags) -> int:
    found = verify(Ledger(given[0]))
    for fault in found.faults:
        print(fault)
    for path in found.foreign:
        print(f"{path} among the tensors is none of this ledger's; move it away")
    left = (
        f"; {found.unnamed} unnamed and {found.torn} torn files, which gc removes" if found.unnamed + found.torn else ""
    )
    bad = len(found.faults) + len(found.foreign)
    print(
        f"{found.commits} commits, {found.files} tensor files, {words.size(found.bytes)}: "
        f"{f'{bad} faults' if bad else 'all as it was written'}{left}"
    )
    return EXIT_DAMAGED if bad else 0


def run_gc(given: list[str], _flags: Flags) -> int:
    removed = gc(Ledger(given[0]))
    print(f"removed {removed.files} tensor files of {words.size(removed.bytes)}, and {removed.torn} torn ones")
    return 0


def run_push(given: list[str], flags: Flags) -> int:
    sent = exchange.push(Ledger(given[0]), given[1], given[2:], git=flags.get("git"))
    print(f"sent {sent.files} tensor files of {words.size(sent.bytes)}; {sent.there} were there")
    return 0


def run_pull(given: list[str], flags: Flags) -> int:
    sent = exchange.pull(Ledger(given[0]), given[1], given[2:], git=flags.get("git"))
    print(f"fetched {sent.files} tensor files of {words.size(sent.bytes)}; {sent.there} were here")
    return 0


# --- what several of them do ------------------------------------------------------------------------------------------


def opened(given: Sequence[str]) -> tuple[Ledger, Measuring]:
    ledger = Ledger(given[0])
    return ledger, Measuring(ledger, lambda text: print(text, file=sys.stderr, flush=True))


def told(measuring: Measuring, made: Commit, flags: Flags, searched: Found | None = None) -> int:
    """Say what a new commit did to each task. searched: how its scale was chosen; examples of that choice are left out."""
    print(f"{made.short} {made.subject}")
    if switch(flags, "evaluate", made.manifest.source == "run"):
        found = effects(measuring, made.ledger.commit(made.parents[0]), made, unseen=searched is not None)
        print("\n".join([*words.effect_lines(found), words.summary(found)]))
        if searched is not None:
            print("\n".join(words.search_lines(searched.scale, [e.name for e in found], searched.whole)))
    return 0


def draw(path: Path, commits: Sequence[Commit], measuring: Measuring, ask: bool) -> None:
    """Write the page of commits."""
    ledger, refs, steps = measuring.ledger, named(measuring.ledger), []
    for commit in commits:
        run = commit.manifest.source == "run"
        measured = measuring.of_commit(commit) if ask and run else measuring.known(commit)
        before = ledger.commit(commit.parents[0]) if commit.parents else None
        both = before is not None and before.manifest.source == commit.manifest.source
        found = effects(measuring, before, commit, ask=ask and run) if before is not None and both else []
        changed = compare.changes(before, commit) if before is not None and both else []
        steps.append(Step(commit, refs.get(commit.id, ()), measured, found, changed))
    write_page(path, f"History of {ledger.path.name}", steps, facts_of(ledger, len(commits)))
    print(f"wrote {path}")


def named(ledger: Ledger) -> dict[str, list[str]]:
    """Branches and tags by commit."""
    found: dict[str, list[str]] = {}
    for name, commit in ledger.git.refs().items():
        found.setdefault(commit, []).append(name.split("/", 2)[-1])
    return found


def facts_of(ledger: Ledger, count: int) -> dict[str, str]:
    chunks = ledger.store.listed()[0]
    branches = ", ".join(sorted(ledger.heads()))
    return {
        "commits": str(count),
        "branches": branches,
        "tensor files": f"{len(chunks):,}",
        "stored": words.size(sum(chunks.values())),
    }


def stored(ledger: Ledger) -> int:
    return sum(ledger.store.listed()[0].values())
