"""Whether a release could be made of this checkout: builds it, installs it into an empty environment, trains there.

    make release-check
    make release-check RELEASE_FLAGS=--config.train.num_steps=20     a shorter training

Needs git, a package registry, and five minutes on two cores. Nothing is uploaded; dist/ holds what was checked.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
EXTRAS = "all extras but those that bring CUDA, the compiler of TPUs or torch"


class Failed(Exception):
    """One line: what is wrong."""


def call(*argv: str | Path, cwd: Path = ROOT, **environ: str) -> str:
    """Runs a command and returns its stdout; raises Failed with its last lines."""
    print("  $", " ".join(str(arg).replace(str(ROOT), ".") for arg in argv), flush=True)
    done = subprocess.run([*map(str, argv)], cwd=cwd, env=clean() | environ, capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise Failed(f"{argv[0]} ended with {done.returncode}:\n{tail}")
    return done.stdout


def clean() -> dict[str, str]:
    """The environment without what would let a checkout shine through, or name a version."""
    left = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHONPATH", "VIRTUAL_ENV"))
    }
    return {name: value for name, value in left.items() if "PRETEND_VERSION" not in name}


def expect(holds: bool, otherwise: str) -> None:
    """Raises Failed unless it holds."""
    if not holds:
        raise Failed(otherwise)


def build(folder: Path) -> tuple[Path, Path]:
    """dist/*.whl and dist/*.tar.gz; the wheel made from the sdist has the bytes of the one made from the checkout."""
    call(sys.executable, "-m", "build", "--outdir", folder / "both")  # the wheel from the sdist
    call(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "checkout")
    (sdist,), (wheel,) = ((folder / "both").glob(end) for end in ("*.tar.gz", "*.whl"))
    (direct,) = (folder / "checkout").glob("*.whl")
    expect(wheel.name == direct.name, f"The sdist builds {wheel.name}, the checkout {direct.name}.")
    differ = different_members(wheel, direct)
    expect(not differ, f"{wheel.name}: the sdist and the checkout build different {', '.join(differ[:5])}.")
    expect(
        filecmp.cmp(wheel, direct, shallow=False),
        f"{wheel.name}: the sdist builds another archive than the checkout.",
    )
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    return Path(shutil.copy(wheel, DIST)), Path(shutil.copy(sdist, DIST))


def different_members(*wheels: Path) -> list[str]:
    """Files that one of two wheels has alone, or with other bytes."""
    first, second = ({one.filename: one.CRC for one in zipfile.ZipFile(wheel).infolist()} for wheel in wheels)
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def versions_of_other_sources(folder: Path) -> None:
    """Clones with a tag, without one, shallow ones and folders without git build, and say their version."""
    git = ("git", "-c", "advice.detachedHead=false")
    call(*git, "clone", "--quiet", "--no-local", ROOT, folder / "tagged")
    untagged = folder / "untagged"
    call(*git, "clone", "--quiet", "--no-tags", folder / "tagged", untagged)
    call(
        *git, "clone", "--quiet", "--depth=1", "--no-tags", f"file://{folder / 'tagged'}", folder / "shallow"
    )
    call(*git, "tag", "v9.8.7", cwd=folder / "tagged")
    for name, commit in (("archive", "v9.8.7"), ("plain", "")):
        (folder / name).mkdir()
        archive = folder / f"{name}.tar"
        call(
            *git,
            "archive",
            f"--output={archive}",
            commit or "HEAD",
            cwd=folder / "tagged" if commit else untagged,
        )
        call("tar", "-xf", archive, "-C", folder / name)
    (folder / "plain/.git_archival.txt").unlink()
    expected = {
        "tagged": r"9\.8\.7",
        "untagged": r"0\.1\.0?\.?dev\d+\+g[0-9a-f]+",
        "shallow": r"0\.1\.0?\.?dev\d+\+g[0-9a-f]+",
        "archive": r"9\.8\.7",
        "plain": r"0\.1\.0\.dev0",
    }
    for name, version in expected.items():
        call(
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            folder / "wheels" / name,
            folder / name,
        )
        (wheel,) = (folder / "wheels" / name).glob("*.whl")
        expect(
            re.fullmatch(f"jaxlm-({version})-py3-none-any.whl", wheel.name) is not None,
            f"A source tree that is {name} builds {wheel.name}, which is not version {version}.",
        )


def train_in_an_empty_environment(wheel: Path, folder: Path, flags: list[str]) -> Path:
    """Installs the wheel and runs the quickstart from a folder that is not the checkout; returns the environment."""
    env, elsewhere = folder / "empty", folder / "elsewhere"
    elsewhere.mkdir()
    call(sys.executable, "-m", "venv", env)
    call(env / "bin/pip", "install", "--quiet", wheel, cwd=elsewhere)
    jaxlm, cache = env / "bin/jaxlm", str(folder / "cache")
    version = wheel.name.split("-")[1]
    said = call(jaxlm, "--version", cwd=elsewhere)
    expect(said.startswith(f"jaxlm {version} "), f"{wheel.name} says it is {said.strip()!r}.")
    where = call(env / "bin/python", "-c", "import jaxlm; print(jaxlm.__file__)", cwd=elsewhere).strip()
    expect(
        str(env) in where and (Path(where).parent / "py.typed").exists(),
        f"{where}: not the wheel, or untyped.",
    )
    said = call(
        jaxlm,
        "train",
        "--config=quickstart",
        "--workdir=runs/quickstart",
        *flags,
        cwd=elsewhere,
        JAXLM_CACHE=cache,
    )
    print("    " + "\n    ".join(said.splitlines()[-3:]))
    prompt = "--prompt=The function returns"
    said = call(
        jaxlm,
        "generate",
        "--run=runs/quickstart",
        prompt,
        "--max-new-tokens=8",
        cwd=elsewhere,
        JAXLM_CACHE=cache,
    )
    print("    " + said.strip()[:100])
    return env


def check_licences(env: Path, wheel: Path) -> None:
    """With all extras installed, docs/licences.md holds."""
    sys.path.insert(0, str(ROOT / ".ci"))
    import licences

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = ",".join(name for name in project["optional-dependencies"] if name not in licences.EXCEPT)
    call(env / "bin/pip", "install", "--quiet", f"{wheel}[{names}]")
    print("    " + call(env / "bin/python", ROOT / ".ci/licences.py", "--check", "--complete").strip())


def check_words(wheel: Path) -> None:
    """The changelog has a section for a tagged version; no page and no picture of the site is missing."""
    version = wheel.name.split("-")[1]
    if re.fullmatch(r"\d+(\.\d+)*", version):
        changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        expect(f"## [{version}]" in changelog, f"CHANGELOG.md has no section ## [{version}].")
    sys.path.insert(0, str(ROOT / "docs"))
    import site_hook

    missing = [*site_hook.missing_pages(ROOT / "mkdocs.yml"), *site_hook.missing_images()]
    expect(not missing, f"mkdocs.yml and pages name what does not exist: {', '.join(missing)}.")


def main() -> int:
    """Runs all checks; 1 where one fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--skip-licences", action="store_true", help="do not install all extras (some minutes)"
    )
    args, flags = parser.parse_known_args()
    try:
        with tempfile.TemporaryDirectory(prefix="jaxlm-release-") as name:
            folder = Path(name)
            print("sdist and wheel")
            wheel, sdist = build(folder)
            call(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
            print("versions")
            versions_of_other_sources(folder)
            print("an empty environment")
            env = train_in_an_empty_environment(wheel, folder, flags)
            if not args.skip_licences:
                print(f"licences, with {EXTRAS}")
                check_licences(env, wheel)
            print("words")
            check_words(wheel)
    except Failed as failed:
        print(f"release-check: {failed}", file=sys.stderr)
        return 1
    print(f"release-check: {wheel.name} and {sdist.name} in dist/ are ready.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
