#!/usr/bin/env python3
"""Changes src/pace in every way that cargo-mutants knows, and tells which changes no test notices.

    tests/mutants/run.py [--missed] [FILE ...]      files such as window.rs or signal/fields.rs; without any, all of them

The pacing depends on nothing else of the package. So it is copied into a package of its own under target/mutants,
with its tests in the same crate, and all mutants are woven into one build (`weave/`): a mutant costs a run of the
tests until the first one fails, and nothing is compiled for it. MUTANTS_MINUTES (240) bounds the time; what was found is
in target/mutants/results.txt, and what was tried is not tried again while neither sources nor tests have changed.
With --missed only what was missed the last time is tried again, after tests were added.

Mutants that may survive stand in survivors.txt, each with its reason. Any other survivor is a failure.
"""

import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORK = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "mutants"
CRATE = WORK / "crate"
# The same without any mutant: what is changed meanwhile is of no concern.
PLAIN = WORK / "plain"
FRESH = WORK / "fresh"
RESULTS = WORK / "results.txt"
# Of processor time: a mutant that loops for ever is noticed on a busy machine, and a slow one is not taken for it.
CPU_SECONDS = 60
# Tests are tried in the order of what they cost, in three goes: those that take less than so many seconds first.
GOES_SECONDS = [0.05, 1.0, float("inf")]
# What is found out about limits that nobody declared stands above these files.
DECLARED = "ask bucket calls counter edge gate gcra limit period saved shelf slot smooth spec spread time window".split()
MEMORY_BYTES = 4 << 30


def say(text):
    print(f"mutants: {text}", flush=True)


def cargo(*args, cwd, **more):
    env = dict(os.environ, CARGO_TARGET_DIR=str(WORK / "target"))
    return subprocess.run(["cargo", *args], cwd=cwd, env=env, **more)


def put_together():
    """The crate as it is, without any mutant."""
    shutil.rmtree(PLAIN, ignore_errors=True)
    shutil.copytree(ROOT / "src/pace", PLAIN / "src/pace")
    shutil.copytree(ROOT / "tests/oracle", PLAIN / "tests/oracle")
    shutil.copy(HERE / "Cargo.toml", PLAIN)
    shutil.copy(ROOT / "Cargo.lock", PLAIN)
    lib = (HERE / "lib.rs").read_text()
    for test in sorted((ROOT / "tests").glob("pacing*.rs")):
        used = set(re.findall(r"paceline::(\w+)", test.read_text()))
        if used - {"pace"}:
            say(f"{test.name} is left out, since it needs more than the pacing")
            continue
        shutil.copy(test, PLAIN / "tests")
        lib += f'\n#[cfg(test)]\n#[path = "../tests/{test.name}"]\nmod {test.stem};\n'
    (PLAIN / "src/lib.rs").write_text(lib)


def list_of_mutants():
    """Their names, and the numbers of those that are known not to compile."""
    program = shutil.which("cargo-mutants") or str(WORK / "tools/bin/cargo-mutants")
    if not Path(program).exists():
        say("building cargo-mutants, once")
        env = dict(os.environ, CARGO_PROFILE_DEV_DEBUG="false", CARGO_INCREMENTAL="0")
        install = ["cargo", "install", "--quiet", "--locked", "--debug", "--root", str(WORK / "tools"), "cargo-mutants"]
        subprocess.run(install, env=env, check=True)
    args = [program, "mutants", "--list", "--json", "--file", "src/pace/**"]
    text = subprocess.run(args, cwd=PLAIN, check=True, stdout=subprocess.PIPE, text=True).stdout
    known, before = WORK / "unviable.txt", WORK / "list.json"
    same = known.exists() and before.exists() and before.read_text() == text
    unviable = set(map(int, known.read_text().split())) if same else set()
    before.write_text(text)
    return [mutant["name"] for mutant in json.loads(text)], unviable


def weave(unviable):
    """All mutants but those into the sources; returns number → name."""
    shutil.rmtree(FRESH, ignore_errors=True)
    shutil.copytree(PLAIN, FRESH)
    (WORK / "unviable.txt").write_text("".join(f"{number}\n" for number in sorted(unviable)))
    args = ["run", "--quiet", "--", WORK / "list.json", FRESH, WORK / "unviable.txt"]
    text = cargo(*map(str, args), cwd=HERE / "weave", check=True, stdout=subprocess.PIPE, text=True).stdout
    # What is the same stays as old as it is, so that it is not built again.
    for old in [path for path in CRATE.rglob("*.rs") if not (FRESH / path.relative_to(CRATE)).exists()]:
        old.unlink()
    for new in [path for path in FRESH.rglob("*") if path.is_file()]:
        old = CRATE / new.relative_to(FRESH)
        if not old.exists() or old.read_bytes() != new.read_bytes():
            old.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(new, old)
    return {int(number): name for number, name in (line.split(" ", 1) for line in text.splitlines())}


def build():
    """The test program, or the numbers of mutants that do not compile."""
    args = ["test", "--lib", "--no-run", "--message-format=json"]
    output = cargo(*args, cwd=CRATE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    program, unviable = None, set()
    for message in map(json.loads, output.splitlines()):
        if message.get("executable"):
            program = message["executable"]
        message = message.get("message") or {}
        if message.get("level") == "error" and message["spans"]:
            unviable.add(culprit(message))
    return program, unviable


def culprit(message):
    """The mutant at which an error points: the last one that is written before it."""
    span = next(span for span in message["spans"] if span["is_primary"])
    text = (CRATE / span["file_name"]).read_bytes()
    if "non-exhaustive" in message["message"]:
        return int(re.search(rb"mutant\(\) != (\d+)u32", text[span["byte_start"] :])[1])
    before = re.findall(rb"(\d+)u32 =>", text[: span["byte_start"] + 1])
    if not before:
        sys.exit(f"mutants: {span['file_name']}: {message['message']}")
    return int(before[-1])


def woven_program():
    put_together()
    names, unviable = list_of_mutants()
    while True:
        woven = weave(unviable)
        program, more = build()
        if program:
            break
        if not more - unviable:
            sys.exit("mutants: the woven sources do not compile")
        unviable |= more
    left_out = [name for n, name in enumerate(names, 1) if n not in woven and n not in unviable]
    say(f"{len(names)} mutants: {len(woven)} woven, {len(unviable)} do not compile, {len(left_out)} cannot be woven")
    (WORK / "left-out.txt").write_text("".join(f"{name}\n" for name in left_out))
    return program, woven


def by_cost(program):
    """The names of all tests, by what they cost without any mutant."""
    flags = ["-Zunstable-options", "--report-time", "--test-threads=1"]
    env = dict(os.environ, RUSTC_BOOTSTRAP="1")
    run = subprocess.run([program, *flags], cwd=CRATE, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if run.returncode:
        sys.exit("mutants: the tests fail without any mutant")
    costs = {name: float(cost) for name, cost in re.findall(r"^test (\S+) \.\.\. ok <([\d.]+)s>", run.stdout, re.M)}
    found = [[], [], []]
    for name, cost in costs.items():
        found[next(n for n, most in enumerate(GOES_SECONDS) if cost < most)].append(name)
    return found


def attempt(program, number, name, goes):
    declared = Path(name.split(":")[0]).stem in DECLARED
    for tests in goes:
        tests = [test for test in tests if not (declared and test.startswith("pacing_unknown"))]
        result = run_tests(program, number, tests)
        if result != "missed":
            return result
    return "missed"


def run_tests(program, number, tests):
    def bounded():
        os.nice(19)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))

    # One failing test is enough; the flag is not stable yet, hence the variable.
    args = [program, "-Zunstable-options", "--fail-fast", "-q", "--exact", *tests]
    env = dict(os.environ, MUTANT=str(number), RUSTC_BOOTSTRAP="1", PROPTEST_MAX_SHRINK_ITERS="0", RUST_BACKTRACE="0")
    env.pop("PACING_SEED", None)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    code = subprocess.run(args, cwd=CRATE, env=env, preexec_fn=bounded, **quiet).returncode
    return {0: "missed", 101: "killed"}.get(code, "hung" if code in (-24, -9) else "died")


def bare(name):
    """A mutant's name without its line, so that it outlives changes elsewhere."""
    return re.sub(r":\d+:\d+:", ":", name)


def survivors():
    known = {}
    for line in (HERE / "survivors.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, reason = line.partition(" — ")
            known[name] = reason
    return known


def main():
    files = [arg for arg in sys.argv[1:] if not arg.startswith("--")]
    ends = time.monotonic() + 60 * float(os.environ.get("MUTANTS_MINUTES", "240"))
    CRATE.mkdir(parents=True, exist_ok=True)
    missed_before = set()
    if "--missed" in sys.argv and RESULTS.exists():
        lines = (line.split(" ", 1) for line in RESULTS.read_text().splitlines()[1:])
        missed_before = {bare(name) for result, name in lines if result == "missed"}
    program, woven = woven_program()
    digest = hashlib.sha256(Path(program).read_bytes()).hexdigest()
    done = {}
    if RESULTS.exists() and RESULTS.read_text().split("\n", 1)[0] == digest:
        done = {name: result for result, name in (line.split(" ", 1) for line in RESULTS.read_text().splitlines()[1:])}
    else:
        RESULTS.write_text(f"{digest}\n")
    goes = by_cost(program)
    wanted = [
        (number, name)
        for number, name in woven.items()
        if (not files or any(name.startswith(f"src/pace/{file}:") for file in files))
        and ("--missed" not in sys.argv or bare(name) in missed_before)
    ]
    for number, name in wanted:
        if name not in done and time.monotonic() < ends:
            done[name] = attempt(program, number, name, goes)
            with RESULTS.open("a") as results:
                results.write(f"{done[name]} {name}\n")
            if done[name] == "missed":
                print(f"  missed {name}", flush=True)
    known = survivors()
    tried = {name: done[name] for _, name in wanted if name in done}
    missed = [name for name, result in tried.items() if result == "missed"]
    surprises = [name for name in missed if bare(name) not in known]
    say(f"{len(tried)} of {len(wanted)} tried: {len(tried) - len(missed)} noticed, {len(missed)} missed")
    if surprises:
        print("\n".join(["missed, and not in survivors.txt:", *(f"  {name}" for name in surprises)]))
    sys.exit(bool(surprises) or len(tried) < len(wanted))


main()
