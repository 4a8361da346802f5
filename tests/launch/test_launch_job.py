"""What is wrong with a command is said before a machine is rented."""

import pytest

TARGET = ["--zone=us-west4-a", "--project=my-project", "--package=jaxlm==0.1.0"]
AT = "--workdir=gs://b/r"
LLAMA = "--config=pretrain_llama2_7b_v5e256"
TRAIN = ["train", LLAMA, AT]


@pytest.mark.parametrize(
    ("flags", "job", "rule"),
    [
        (["--accelerator=v5e-256"], [], "No command is given: write it behind --"),
        (["--accelerator=v5e-256"], ["trian", LLAMA], "did you mean 'train'"),
        (["--accelerator=v5e-256"], ["train", LLAMA], "--workdir is missing behind --: give it, or `bucket`"),
        (["--accelerator=v5e-256"], ["train", LLAMA, "--workdir=runs/x"], "64 machines write to it: give gs://BUCKET/RUN"),
        (["--accelerator=v5e-8"], ["train", LLAMA, "--workdir=/x"], "it has to outlive the machine"),
        (["--accelerator=v5e-256"], ["train", LLAMA, "--workdir=gs://bucket"], "has to be a folder in a bucket"),
        (["--accelerator=v5e-256"], ["train", LLAMA, AT, "--process-id=0"], "say who is who"),
        (["--accelerator=v5e-256"], ["generate", "--run=gs://b/r"], "generate is done by one process, and 64 would be"),
        (["--accelerator=v5e-256"], ["train", LLAMA, AT, "--config.model.nokey=3"], "Unknown config key"),
        (["--accelerator=v5e-256"], ["train", "--config=lama", AT], "no such config"),
        (["--accelerator=v5e-256"], ["train", LLAMA, AT, "a\nb"], "control character"),
        (["--accelerator=v5p-4096"], TRAIN, "does not fit the config: data.global_batch_size="),
        (["--accelerator=v5p-4096"], TRAIN, "With this config, v5p-"),
        (["--accelerator=h100x8"], TRAIN, "use --on=gke, slurm, skypilot or ray"),
        (["--accelerator=tpu7x-128"], TRAIN, "use --on=gke or --on=xpk"),
        (["--accelerator=v5p:4x4x12"], TRAIN, "Write v5p-384, or use --on=gke for 4x4x12"),
        (["--accelerator=v5e-256", "--secret=TOKEN"], TRAIN, "NAME-OF-THE-SECRET"),
        (["--accelerator=v5e-256", "--service-account=sa"], TRAIN, "e-mail address"),
        (["--accelerator=v5e-256", "--env=A"], TRAIN, "must read NAME=VALUE"),
        (["--accelerator=v5e-256", "--status"], ["train"], "take no command behind --"),
        (["--accelerator=v5e-256", "--wheel=no/such.whl"], TRAIN, "wheel=no/such.whl is not there"),
        (["--accelerator=v5e-256", "--checkout=no/such"], TRAIN, "has no pyproject.toml"),
        (["--accelerator=v5e-256", "--target=no.yaml"], TRAIN, "no.yaml does not exist"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_anything_is_rented(jaxlm, flags, job, rule):
    code_given = any(flag.startswith(("--wheel", "--checkout")) for flag in flags)
    code, out, err = jaxlm("launch", "--on=tpu", *(TARGET[:2] if code_given else TARGET), *flags, "--", *job)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert rule in err


def test_flags_of_the_command_go_behind_the_dashes(jaxlm):
    code, _, err = jaxlm("launch", "--on=tpu", LLAMA)
    assert code == 2
    assert f"{LLAMA} stands before --" in err


def test_a_secret_in_the_command_is_neither_sent_nor_said(jaxlm):
    token = "hf_" + "a1" * 20
    code, out, err = jaxlm(
        "launch", "--on=tpu", *TARGET, "--accelerator=v5e-16", "--", "train", f"--config.name={token}"
    )
    assert code == 2
    assert token not in out + err
    assert "Name it under `secrets`" in err


def test_the_bucket_and_the_name_make_the_workdir(jaxlm):
    flags = [*TARGET, "--accelerator=v5e-256", "--bucket=gs://my-bucket/runs/", "--name=llama"]
    code, out, _ = jaxlm("launch", "--on=tpu", *flags, "--", "train", LLAMA)
    assert code == 0
    assert "--workdir=gs://my-bucket/runs/llama\n" in out


def test_any_argument_reaches_the_machines_as_it_is(jaxlm, tmp_path):
    import shlex

    evil = "--config.data.sources.x.path=a b'c\"d$(id)`id`;&|*"
    code, out, _ = jaxlm("launch", "--on=tpu", *TARGET, "--accelerator=v5e-16", "--skip-config-check", "--", "train",
                         "--config=quickstart", evil, AT)  # fmt: skip
    assert code == 0
    (start,) = [word for word in shlex.split(out, comments=True) if "nohup" in word]
    (line,) = [line for line in start.splitlines() if "launch --on=local" in line]
    assert shlex.split(line)[-2] == evil
