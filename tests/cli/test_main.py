"""The `jaxlm` command itself: finding commands, splitting flags, exit codes."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from jaxlm.cli import main as cli
from jaxlm.types import UserError

JAXLM = [sys.executable, "-m", "jaxlm"]
COMMANDS = sorted(cli.commands())


@pytest.fixture
def command(monkeypatch):
    """Replaces `jaxlm config` by a command that does what the test says."""
    from jaxlm.cli import config

    def install(run, add_arguments=lambda parser: None):
        monkeypatch.setattr(config, "main", run)
        monkeypatch.setattr(config, "add_arguments", add_arguments)

    return install


def test_help_lists_every_command_with_one_line(capsys):
    for argv in ([], ["--help"], ["-h"], ["help"]):
        assert cli.main(argv) == 0
        out = capsys.readouterr().out
        lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
        assert sorted(lines) == COMMANDS
        assert all(len(line.split()) > 2 for line in lines.values()), out
    assert {"config", "corpus", "tokenizer"} <= set(COMMANDS)


def test_an_empty_workdir_is_not_the_current_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxlm.run.train", lambda *args: pytest.fail("trained"))
    assert cli.main(["train", "--config=quickstart", "--workdir="]) == 2
    assert capsys.readouterr().err == "jaxlm: error: --workdir is empty: name a folder, such as runs/mine.\n"
    assert os.listdir(tmp_path) == []


def test_help_answers_at_once():
    times = []
    for _ in range(3):
        start = time.monotonic()
        subprocess.run([*JAXLM, "--help"], check=True, capture_output=True)
        times.append(time.monotonic() - start)
    assert min(times) < 0.5


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join
)
def test_help_and_version_import_nothing_heavy(argv):
    code = (
        "import sys\nfrom jaxlm.cli.main import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as stop:\n    code = stop.code\n"
        "heavy = {'jax', 'numpy', 'flax', 'grain', 'orbax'} & set(sys.modules)\n"
        "sys.exit(code or str(heavy or '') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "jaxlm" in done.stdout


def test_every_command_explains_its_flags(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            cli.main([name, "--help"])
        assert stop.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: jaxlm {name} ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["confg"], "'confg' is not a command of jaxlm; did you mean config?"),
        (["qqq"], "'qqq' is not a command of jaxlm; there are "),
        (["--config=x"], "'--config=x' is not a command of jaxlm; "),
        (["config", "--dif=x"], "Unknown flag --dif; did you mean --diff?"),
        (["config", "--cofig=x"], "Unknown flag --cofig; did you mean --config?"),
        (["config", "--zzzzzz"], "Unknown flag --zzzzzz. See `jaxlm config --help`."),
        (["config", "--diff"], "argument --diff: expected one argument. See `jaxlm config --help`."),
        (["config", "stray"], "unrecognized arguments: stray. See `jaxlm config --help`."),
        (["config", "--config=quickstart", "--config.sed=1"], "Unknown config key sed; did you mean seed?"),
        (["config", "--config.=1"], "Unknown flag --config."),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(argv, message, capsys):  # pain 24
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"jaxlm: error: {message}")
    assert err.count("\n") == 1


def test_flags_are_never_abbreviated(capsys):
    assert cli.main(["config", "--config=quickstart", "--js"]) == 2
    assert "Unknown flag --js" in capsys.readouterr().err


def test_config_flags_go_to_the_config_and_the_others_to_the_command(command):
    seen = []
    command(
        lambda args, config_argv: seen.append((args.steps, config_argv)) or 7,
        lambda parser: parser.add_argument("--steps", type=int),
    )
    assert cli.main(["config", "--config.a", "1", "--steps", "3", "--config=x", "--noconfig.b"]) == 7
    assert seen == [(3, ["--config.a=1", "--config=x", "--noconfig.b"])]


def test_a_message_of_several_lines_is_printed_as_one(command, capsys):
    def fail(args, config_argv):
        raise UserError("path 'a\nb' is odd")

    command(fail)
    assert cli.main(["config"]) == 2
    assert capsys.readouterr().err == "jaxlm: error: path 'a b' is odd\n"


def test_a_bug_keeps_its_traceback(command):
    def fail(args, config_argv):
        raise ZeroDivisionError

    command(fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["config"])


def test_an_interrupt_is_one_line_and_exit_code_130(command, capsys):
    def interrupt(args, config_argv):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    command(interrupt)
    assert cli.main(["config"]) == 130
    assert capsys.readouterr().err == "jaxlm: interrupted.\n"


def test_a_reader_that_leaves_early_is_no_error():
    code = f"{' '.join(JAXLM)} config --keys | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode in (0, 141)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*JAXLM, "config", "--keys"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_text_that_the_terminal_cannot_show_is_replaced(command, tmp_path):
    code = (
        "from jaxlm.cli import config, main\n"
        "config.main = lambda args, config_argv: print('ক্ষ ok') or 0\nmain.main(['config'])"
    )
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout) == (0, "??? ok\n")


def test_version_names_the_packages_that_matter_in_a_bug_report():
    done = subprocess.run([*JAXLM, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("jaxlm 0.")
    assert all(package in done.stdout for package in ("python 3.", "jax ", "jaxlib ", "flax ", "grain "))


def test_commands_are_found_without_importing_them(tmp_path, monkeypatch):
    for name, text in {"next_token": '"""Look.\n\nMore."""\n1 / 0', "_shared": "", "main": ""}.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "main.py"))
    assert cli.commands() == ["next-token"]
    assert "commands:\n  next-token  Look.\n\n" in cli._help()


AT = {
    "while modules are imported": """
        class Finder:
            def find_spec(self, name, *args):
                if name == "jaxlm.cli":
                    os.kill(os.getpid(), signal.SIGINT)
        sys.meta_path.insert(0, Finder())
    """,
    "while the interpreter goes": "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))",
}


@pytest.mark.parametrize("moment", AT)
def test_an_interrupt_shows_no_traceback(moment):
    code = "import atexit, os, signal, sys\n" + textwrap.dedent(AT[moment])
    code += "\nfrom jaxlm.__main__ import start\nsys.exit(start())"
    result = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (-signal.SIGINT, "")


def test_an_interrupt_during_the_collection_of_garbage_is_not_lost():
    code = """
        import signal, sys, time
        from jaxlm.__main__ import start
        from jaxlm.cli import main
        class Garbage:
            def __del__(self):
                signal.raise_signal(signal.SIGINT)
                time.sleep(0)
        def run(argv):
            Garbage()
            time.sleep(30)
            return 0
        main._run = run
        sys.exit(start())
    """
    code = textwrap.dedent(code)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert (result.returncode, result.stderr) == (130, "jaxlm: interrupted.\n")
