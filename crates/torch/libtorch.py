#!/usr/bin/env python3
"""Prints the directory of the libtorch that Sconce is built against, obtaining it first when need be.

A LIBTORCH of the user's own is checked and printed as it is.  Otherwise the CPU part of libtorch is cut out
of the wheel that PyPI publishes, once, into a cache outside the source tree:

    ${SCONCE_CACHE:-${XDG_CACHE_HOME:-~/.cache}/sconce}/libtorch-VERSION-cpu-x86_64/{lib,include}

The path goes to stdout, progress to stderr, and what goes wrong is said in one sentence (exit status 1).
Python's standard library is enough; pip does the download, so its configuration (mirror, proxy) holds.
"""

import contextlib
import fcntl
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path, PurePosixPath

VERSION = "2.11.0"
SERIES = "2.11"  # tch 0.24 is generated from this series; what it calls has the same shape in every patch
GLIBC = (2, 28)

# libtorch_cpu.so of this wheel links the CUDA runtime and CUPTI; a machine without a GPU has neither.
REQUIREMENTS = """\
torch==2.11.0 \\
  --hash=sha256:7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a
nvidia-cuda-runtime==13.0.96 \\
  --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
nvidia-cuda-cupti==13.0.85 \\
  --hash=sha256:4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8
"""
WHEEL_TAGS = ["--python-version", "3.11", "--implementation", "cp"]
for _platform in ("manylinux_2_28_x86_64", "manylinux_2_25_x86_64", "manylinux2014_x86_64"):
    WHEEL_TAGS += ["--platform", _platform]
LIBRARIES = {"libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libshm.so", "libcudart.so.13", "libcupti.so.13"}
DOWNLOAD_MB = 545
WANTED_MB = 1150  # at the peak: the wheels and what pip keeps beside them; later 500 MB


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` removes what was half made
    own = own_libtorch()
    print(checked(own) if own else obtained())


# A libtorch of the user's own.


def own_libtorch():
    """The user's LIBTORCH, or the `torch` of this Python when LIBTORCH_USE_PYTORCH asks for it, or None."""
    if os.environ.get("LIBTORCH"):
        return Path(os.environ["LIBTORCH"])
    if not os.environ.get("LIBTORCH_USE_PYTORCH"):
        return None
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        fail(f"LIBTORCH_USE_PYTORCH is set but {sys.executable} has no torch: install torch=={VERSION} there "
             "or unset it.")
    return Path(torch.origin).parent


def checked(libtorch):
    """`libtorch` as an absolute path, after a look at what the build needs from it."""
    remedy = "set LIBTORCH to a libtorch directory, or unset it to have one fetched."
    if not libtorch.is_dir():
        fail(f"LIBTORCH={libtorch} is not a directory: {remedy}")
    for needed in ("lib/libtorch_cpu.so", "lib/libtorch.so", "lib/libc10.so", "include/torch/script.h"):
        if not (libtorch / needed).exists():
            fail(f"LIBTORCH={libtorch} has no {needed}: {remedy}")
    found = version_of(libtorch)
    if found != SERIES and not os.environ.get("SCONCE_ANY_LIBTORCH"):
        fail(f"LIBTORCH={libtorch} is libtorch {found or 'of an unknown version'}, expected is {SERIES}: set "
             "LIBTORCH to one of that version, unset it to have one fetched, or try it all the same with "
             "SCONCE_ANY_LIBTORCH=1.")
    return Path(os.path.abspath(libtorch))


def version_of(libtorch):
    """`MAJOR.MINOR` as the headers say it, or None."""
    for header in ("headeronly/version.h", "csrc/api/include/torch/version.h"):
        with contextlib.suppress(OSError):
            text = (libtorch / "include/torch" / header).read_text(encoding="utf-8")
            parts = [re.search(rf"#define TORCH_VERSION_{part} (\d+)", text) for part in ("MAJOR", "MINOR")]
            if all(parts):
                return ".".join(part.group(1) for part in parts)
    return None


# The one that is fetched.


def obtained():
    """The cached libtorch, fetched now unless it is there."""
    refuse_other_machines()
    cache = cache_directory()
    target = cache / f"libtorch-{VERSION}-cpu-x86_64"
    if is_complete(target):
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = open(cache / ".libtorch.lock", "w")
    except OSError as error:
        fail(f"cannot write to the cache {cache} ({error.strerror}): set SCONCE_CACHE to one of yours.")
    with lock:
        wait_for(lock)
        if not is_complete(target):
            for stale in cache.glob(".libtorch-*.part"):  # of a killed run: a live one holds the lock
                shutil.rmtree(stale, ignore_errors=True)
            fetch(cache, target)
    return target


def cache_directory():
    cache = os.environ.get("SCONCE_CACHE")
    if not cache:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sconce"
    return Path(cache).absolute()


def refuse_other_machines():
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        fail(f"libtorch can be fetched for Linux x86-64 only, this is {system} {machine}: "
             f"set LIBTORCH to a libtorch {SERIES} for this machine.")
    name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "another C library").partition(" ")
    if name != "glibc" or tuple(map(int, version.split(".")[:2])) < GLIBC:
        fail(f"the libtorch that can be fetched needs glibc {GLIBC[0]}.{GLIBC[1]}, this machine has {name} "
             f"{version}: set LIBTORCH to a libtorch {SERIES} for it.")


def is_complete(target):
    """A directory under the final name was renamed there whole; this notices a file deleted since."""
    names = [f"lib/{name}" for name in LIBRARIES | {"libtorch.so"}] + ["include/torch/script.h"]
    return all((target / name).exists() for name in names)


def wait_for(lock):
    """One fetch at a time; where the file system has no locks two may fetch, and the rename decides."""
    with contextlib.suppress(OSError):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another run is fetching libtorch: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)


def fetch(cache, target):
    free_mb = shutil.disk_usage(cache).free >> 20
    if free_mb < WANTED_MB:
        fail(f"fetching libtorch takes {WANTED_MB} MB for a moment and {cache} has {free_mb} MB free: make "
             "room or set SCONCE_CACHE to a directory with more.")
    try:
        with staging_in(cache) as staging:
            wheels = download(staging)
            say("unpacking")
            whole = staging / "whole"
            for wheel in wheels:
                unpack(wheel, whole)
                wheel.unlink()
            (whole / "lib/libtorch.so").symlink_to("libtorch_cpu.so")  # the name that torch-sys links
            if not is_complete(whole):
                fail(f"the wheels of libtorch {VERSION} lack a file that was expected in them.")
            publish(whole, target)
    except OSError as error:
        fail(f"libtorch could not be written to {cache} ({error.strerror or error}): run again, or set "
             "SCONCE_CACHE to another directory.")


@contextlib.contextmanager
def staging_in(cache):
    staging = Path(tempfile.mkdtemp(prefix=".libtorch-", suffix=".part", dir=cache))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def publish(whole, target):
    """The one step after which the directory exists, for everybody at once."""
    if target.exists() and not is_complete(target):
        say(f"{target} is incomplete: replacing it")
        shutil.rmtree(target)
    try:
        whole.rename(target)
    except OSError:
        if not is_complete(target):  # else another run was first, and its copy is as good
            raise
    say(f"{target} is ready")


def download(staging):
    """The wheels, fetched by pip and checked against the hashes above."""
    wheels, requirements, log = staging / "wheels", staging / "requirements.txt", staging / "pip.log"
    requirements.write_text(REQUIREMENTS, encoding="utf-8")
    command = [*pip(staging), "download", "--no-deps", "--only-binary=:all:", "--require-hashes", *WHEEL_TAGS,
               "--no-cache-dir", "--disable-pip-version-check", "--progress-bar", "off",
               "--dest", str(wheels), "--requirement", str(requirements)]
    say(f"fetching libtorch {VERSION} (CPU), about {DOWNLOAD_MB} MB, once, into {staging.parent}")
    # pip gathers under TMPDIR: on the same disk, so that the free space measured above is the one used.
    environment = {**os.environ, "TMPDIR": str(staging)}
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                   env=environment)
        try:
            report_until_done(process, staging)
        finally:
            process.kill()
            process.wait()
    if process.returncode != 0:
        fail(f"pip could not fetch libtorch {VERSION}: {last_error(log)}")
    return sorted(wheels.glob("*.whl"))


def report_until_done(process, staging):
    while True:
        try:
            process.wait(timeout=10)
            return
        except subprocess.TimeoutExpired:
            here = sum(file.stat().st_size for file in staging.rglob("*.whl") if file.is_file()) >> 20
            say(f"  {min(here, DOWNLOAD_MB)} of {DOWNLOAD_MB} MB")


def pip(staging):
    """How to call pip: this Python's, or that of a throw-away virtual environment."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if not importlib.util.find_spec("ensurepip"):
        fail(f"{sys.executable} has neither pip nor ensurepip: install them (Debian: apt-get install "
             "python3-venv) and run this again.")
    say("this Python has no pip: making a virtual environment for one")
    try:
        venv.create(staging / "venv", with_pip=True, symlinks=True)
    except subprocess.CalledProcessError as error:
        fail(f"a virtual environment with pip could not be made: {error}")
    return [str(staging / "venv/bin/python"), "-m", "pip"]


def last_error(log):
    """pip's last error line, after the broken connection that led to it where there was one."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    broken = [line.partition("broken by ")[2] for line in lines if "connection broken by " in line]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["it said nothing"]
    return ": ".join(part[:300] for part in broken[-1:] + errors[-1:])


def unpack(wheel, into):
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            place = place_of(PurePosixPath(entry.filename))
            if place is None or entry.is_dir():
                continue
            (into / place).parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, open(into / place, "wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)


def place_of(name):
    """Where a file of a wheel belongs in our directory, or None for what is left out."""
    if name.parts[:2] == ("torch", "include"):
        return PurePosixPath(*name.parts[1:])
    if name.parent.name == "lib" and name.name in LIBRARIES:
        return PurePosixPath("lib", name.name)
    if ".dist-info" in name.parts[0] and name.name.upper().startswith(("LICENSE", "NOTICE")):
        return PurePosixPath("licenses", name.parts[0].partition("-")[0], name.name)
    return None


def say(text):
    print(f"libtorch: {text}", file=sys.stderr, flush=True)


def fail(sentence):
    say(sentence)
    sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
