#!/usr/bin/env python3
"""Changes src/pace in every way that cargo-mutants knows, and tells which changes no test notices.

    tests/mutants/run.py [--missed] [FILE ...]      files such as window.rs or signal/fields.rs; without any, all of them

The pacing depends on nothing else of the package. So it is copied into a package of its own under target/mutants,
with its tests in the same crate, and all mutants are woven into one build (`weave/`): nothing is compiled for a mutant.
It costs a run of the tests that come by its place at all, until the first one fails: the one that noticed it the last
time, all quick ones together, then those that notice most for what they cost, with an eighth of their random cases. What
passes all that is tried again with all random cases and by the longest tests, and only then it was missed.

MUTANTS_MINUTES (240) bounds the time, MUTANTS_JOBS is how many run at once (one a core). What was found is in
target/mutants/programs/*/results.txt, and what was tried is not tried again while neither sources nor tests have changed.
With --missed only what was not noticed the last time is tried again, after tests were added.

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
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORK = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "mutants"
CRATE = WORK / "crate"
# The same without any mutant: what is changed meanwhile is of no concern.
PLAIN = WORK / "plain"
FRESH = WORK / "fresh"
# What does not compile: the digest of its file, and its name.
UNVIABLE = WORK / "unviable.json"
# A directory for each program: a copy of it, what its tests cost, and what was found out.
PROGRAMS = WORK / "programs"
JOBS = int(os.environ.get("MUTANTS_JOBS", os.cpu_count() or 1))
# At first only one of so many random cases is tried.
FEWER = 8
# Tests that take less than so many seconds are run together; those that take longer than this only in the second go.
QUICK_SECONDS = 0.05
LONG_SECONDS = 1.3
# Of processor time: what needs more than so many seconds, and so many times the usual ones, hangs.
CPU_SECONDS = (2, 3)
# What is found out about limits that nobody declared stands above these files.
DECLARED = "ask bucket calls counter edge gate gcra limit period saved shelf slot smooth spec spread time window".split()
UNNOTICED = ("passed", "missed")
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
        text = test.read_text()
        if set(re.findall(r"paceline::(\w+)", text)) - {"pace"}:
            say(f"{test.name} is left out, since it needs more than the pacing")
            continue
        # How many cases are random is the run's choice.
        text = re.sub(r"\bcases: (\d+)", r"cases: crate::cases(\1)", text)
        text = re.sub(r"\bseeds\(([\d_]+)\)", r"seeds(crate::cases(\1).into())", text)
        (PLAIN / "tests" / test.name).write_text(text)
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
    (WORK / "list.json").write_text(text)
    names = [mutant["name"] for mutant in json.loads(text)]
    known = json.loads(UNVIABLE.read_text()) if UNVIABLE.exists() else []
    # What did not compile does not, where the file is the same.
    known = {name for digest, name in known if digest == digest_of_file(name)}
    return names, {number for number, name in enumerate(names, 1) if name in known}


def digest_of_file(name):
    """Of the file in which a mutant is."""
    file = PLAIN / name.split(":")[0]
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None


def weave(unviable):
    """All mutants but those into the sources; returns number → (place, name)."""
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
    lines = (line.split(" ", 2) for line in text.splitlines())
    return {int(number): (int(place), name) for number, place, name in lines}


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
        return int(re.search(rb"mutant\(\d+\) != (\d+)u32", text[span["byte_start"] :])[1])
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
    found = [names[number - 1] for number in sorted(unviable)]
    UNVIABLE.write_text(json.dumps([(digest_of_file(name), name) for name in found]))
    left_out = [name for n, name in enumerate(names, 1) if n not in woven and n not in unviable]
    say(f"{len(names)} mutants: {len(woven)} woven, {len(unviable)} do not compile, {len(left_out)} cannot be woven")
    (WORK / "left-out.txt").write_text("".join(f"{name}\n" for name in left_out))
    return program, woven


@dataclass
class Test:
    """One test: its processor time with all random cases and with few of them, and the places that it comes by."""

    name: str
    random: bool
    whole: float
    cost: float
    places: set


def measured(program, name):
    reached = WORK / f"reached-{threading.get_ident()}.txt"
    reached.unlink(missing_ok=True)
    args = [program, "-q", "--test-threads=1", "--exact", name]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen(args, cwd=CRATE, env=environment(REACHED=str(reached)), **quiet)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"mutants: {name} fails without any mutant")
    whole = usage.ru_utime + usage.ru_stime
    places = set(map(int, reached.read_text().split())) if reached.exists() else set()
    random = 0 in places
    return Test(name, random, whole, whole / FEWER if random else whole, places - {0})


def environment(**more):
    env = dict(os.environ, RUSTC_BOOTSTRAP="1", PROPTEST_MAX_SHRINK_ITERS="0", RUST_BACKTRACE="0", **more)
    for name in ("PACING_SEED", "PACING_SEEDS"):
        env.pop(name, None)
    return env


class Tests:
    """All tests, and how often each of them noticed a mutant of a file."""

    def __init__(self, program, home):
        self.noticed, self.tried = Counter(), Counter()
        known = home / "tests.json"
        if known.exists():
            self.all = [Test(**dict(test, places=set(test["places"]))) for test in json.loads(known.read_text())]
            return
        listed = subprocess.run([program, "--list", "--format=terse"], check=True, stdout=subprocess.PIPE, text=True).stdout
        ignored = subprocess.run([program, "--list", "--format=terse", "--ignored"], check=True, stdout=subprocess.PIPE, text=True).stdout
        names = [line.removesuffix(": test") for line in listed.splitlines() if line.endswith(": test")]
        names = [name for name in names if f"{name}: test" not in ignored.splitlines()]
        with ThreadPoolExecutor(JOBS) as pool:
            self.all = list(pool.map(lambda name: measured(program, name), names))
        tests = [dict(vars(test), places=sorted(test.places)) for test in self.all]
        known.write_text(json.dumps(tests))

    def of(self, place, file):
        """The tests that come by the place: those that will notice something at little cost first."""
        declared = Path(file).stem in DECLARED
        tests = [t for t in self.all if place in t.places and not (declared and t.name.startswith("pacing_unknown"))]
        return sorted(tests, key=lambda test: self.worth(test, file), reverse=True)

    def worth(self, test, file):
        # Some notice much in all files, some in one.
        usual = (self.noticed[test.name] + 1) / (self.tried[test.name] + 10)
        here = (self.noticed[test.name, file] + 3 * usual) / (self.tried[test.name, file] + 3)
        # Whoever notices something ends early.
        return here / (QUICK_SECONDS + test.cost * (1 - here))

    def count(self, tests, file, noticed):
        for name in {test.name for test in tests}:
            for key in (name, (name, file)):
                self.tried[key] += 1
                self.noticed[key] += bool(noticed) and noticed[1] == name


def first_go(program, mutant, tests, last):
    """What became of the mutant, and which test noticed it."""
    number, place, name = mutant
    file = name.split(":")[0]
    left = [test for test in tests.of(place, file) if test.cost < LONG_SECONDS]
    while left:
        if one := [test for test in left if test.name == last]:
            some, last = one, None
        elif left[0].cost < QUICK_SECONDS:
            some = [test for test in left if test.cost < QUICK_SECONDS]
        else:
            some = left[:1]
        left = [test for test in left if test not in some]
        noticed = run_tests(program, number, some)
        tests.count(some, file, noticed)
        if noticed:
            return noticed
    return "passed", "-"


def second_go(program, mutant, tests):
    number, place, name = mutant
    for test in tests.of(place, name.split(":")[0]):
        again = test.random or test.cost >= LONG_SECONDS
        if again and (noticed := run_tests(program, number, [test], whole=True)):
            return noticed
    return "missed", "-"


def run_tests(program, number, tests, whole=False):
    usual = sum(test.whole if whole else test.cost for test in tests)
    seconds = int(CPU_SECONDS[0] + CPU_SECONDS[1] * usual)

    def bounded():
        os.nice(5)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))

    # One failing test is enough; the flag is not stable yet, hence the variable.
    flags = ["-Zunstable-options", "--fail-fast", "--test-threads=1", "--exact"]
    fewer = {} if whole else {"FEWER": str(FEWER)}
    env = environment(MUTANT=str(number), **fewer)
    args = [program, *flags, *(test.name for test in tests)]
    run = subprocess.run(args, cwd=CRATE, env=env, preexec_fn=bounded, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if run.returncode == 0:
        return None
    failed = re.search(rb"^test (\S+)[^\n]* \.\.\. FAILED", run.stdout, re.M)
    who = failed[1].decode() if failed else tests[0].name if len(tests) == 1 else "-"
    return {101: "killed"}.get(run.returncode, "hung" if run.returncode in (-24, -9) else "died"), who


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


class Results:
    """What was found out about this program, and about those before it: name → (result, test)."""

    def __init__(self, home):
        self.lock = threading.Lock()
        self.file = home / "results.txt"
        self.done = lines_of(self.file)
        self.before = {}
        for file in sorted(PROGRAMS.glob("*/results.txt"), key=lambda file: file.stat().st_mtime):
            self.before |= lines_of(file)
        self.last = {bare(name): test for name, (_, test) in self.before.items() if test != "-"}

    def missed_before(self):
        return {bare(name) for name, (result, _) in self.before.items() if result in UNNOTICED}

    def add(self, name, result, test):
        with self.lock:
            self.done[name] = result, test
            with self.file.open("a") as results:
                results.write(f"{result} {test} {name}\n")
            if result == "missed":
                print(f"  missed {name}", flush=True)

    def of(self, name):
        return self.done.get(name, ("untried",))[0]


def lines_of(path):
    lines = (line.split(" ", 2) for line in path.read_text().splitlines()) if path.exists() else []
    return {line[2]: (line[0], line[1]) for line in lines if len(line) == 3}


def main():
    CRATE.mkdir(parents=True, exist_ok=True)
    program, woven = woven_program()
    home = PROGRAMS / hashlib.sha256(Path(program).read_bytes()).hexdigest()[:16]
    home.mkdir(parents=True, exist_ok=True)
    # What is built meanwhile is another one.
    if not (home / "program").exists():
        shutil.copy(program, home / "program")
    judge(home, woven, [arg for arg in sys.argv[1:] if not arg.startswith("--")])


def judge(home, woven, files):
    ends = time.monotonic() + 60 * float(os.environ.get("MUTANTS_MINUTES", "240"))
    program = home / "program"
    results, tests, known = Results(home), Tests(program, home), survivors()
    # Files in the order in which they are named.
    wanted = [
        (number, place, name)
        for file in files or [""]
        for number, (place, name) in woven.items()
        if name.startswith(f"src/pace/{file}:" if file else "")
        and ("--missed" not in sys.argv or bare(name) in results.missed_before())
    ]

    def first(mutant):
        name = mutant[2]
        if results.of(name) == "untried" and time.monotonic() < ends:
            results.add(name, *first_go(program, mutant, tests, results.last.get(bare(name))))

    def second(mutant):
        if time.monotonic() < ends:
            results.add(mutant[2], *second_go(program, mutant, tests))

    with ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(first, wanted))
        # Those that may survive need not prove how hard they are to notice.
        list(pool.map(second, [m for m in wanted if results.of(m[2]) == "passed" and bare(m[2]) not in known]))
    tried = {name: results.of(name) for _, _, name in wanted}
    unnoticed = [name for name, result in tried.items() if result in UNNOTICED]
    surprises = [name for name in unnoticed if bare(name) not in known]
    untried = sum(result == "untried" for result in tried.values())
    noticed = len(tried) - untried - len(unnoticed)
    say(f"{len(tried) - untried} of {len(tried)} tried: {noticed} noticed, {len(unnoticed)} not")
    if surprises:
        print("\n".join(["not noticed, and not in survivors.txt:", *(f"  {tried[name]} {name}" for name in surprises)]))
    sys.exit(bool(surprises) or untried > 0)


if __name__ == "__main__":
    main()
