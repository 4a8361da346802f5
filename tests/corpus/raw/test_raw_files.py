"""Which raw files are found, under which names and formats; how they are opened and cut."""

import gzip
import io
import os
import sys

import pytest

from jaxlm.corpus.raw import remote
from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.files import COMMON_CRAWL, RawFile, RawPart, cut, find_files, open_bytes
from jaxlm.types import UserError


def put(folder, *names, content=b"x"):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def found(*paths, format="auto", account=None):
    return find_files([str(path) for path in paths], format, account or Account())


KINDS = {
    "a.warc": ("warc", ""),
    "a.warc.gz": ("warc", "gz"),
    "a.WARC.ZST": ("warc", "zst"),
    "CC-MAIN-1.warc.wet.gz": ("warc", "gz"),
    "a.wet": ("warc", ""),
    "enwiki-latest-pages-articles1.xml-p10p30-cut.xml.bz2": ("wikipedia", "bz2"),
    "bnwiki-pages-articles.xml": ("wikipedia", ""),
    "pg1342.txt": ("text", ""),
    "book.epub": ("epub", ""),
    "r.jsonl": ("jsonl", ""),
    "r.ndjson.zst": ("jsonl", "zst"),
    "r.json.gz": ("json", "gz"),
    "r.csv": ("csv", ""),
    "r.tsv": ("tsv", ""),
    "r.parquet": ("parquet", ""),
}


def test_formats_are_told_by_the_end_of_the_name(tmp_path):
    put(tmp_path, *KINDS)
    files = found(tmp_path)
    assert {file.name: (file.format, file.compression) for file in files} == KINDS
    assert [file.name for file in files] == sorted(KINDS)
    assert files[0].path == str(tmp_path / files[0].name)
    assert {file.num_bytes for file in files} == {1}


def test_a_folder_is_read_to_its_depth_and_the_rest_is_counted(tmp_path):
    put(tmp_path / "in", "b/c/a.wet", "a.txt", "notes.pdf", ".hidden.txt", ".git/a.txt", "b/a.warc.wat.gz")
    put(tmp_path / "other", "x.txt")
    os.symlink(tmp_path / "other", tmp_path / "in" / "link")
    account = Account()
    assert [file.name for file in found(tmp_path / "in", account=account)] == ["a.txt", "b/c/a.wet"]
    assert account.dropped == {"other_file": 2, "hidden": 2, "linked_folder": 1}


def test_a_format_that_is_given_holds_for_files_whose_names_say_nothing_else(tmp_path):
    put(tmp_path, "a.md", "b.warc.gz", "c.txt", "d.gz")
    account = Account()
    files = found(tmp_path, format="text", account=account)
    assert [(file.name, file.compression) for file in files] == [("a.md", ""), ("c.txt", ""), ("d.gz", "gz")]
    assert account.dropped == {"other_file": 1}
    assert [file.format for file in found(tmp_path / "c.txt", tmp_path / "b.*", format="wikipedia")] == [
        "wikipedia"
    ] * 2


def test_a_glob_finds_files_once(tmp_path):
    put(tmp_path, "s1/a.wet.gz", "s2/b.wet.gz", "s2/c.txt")
    files = found(tmp_path / "*" / "*.wet.gz", tmp_path / "s2")
    assert [file.name for file in files] == ["s1/a.wet.gz", "s2/b.wet.gz", "c.txt"]


@pytest.mark.parametrize(
    ("paths", "format", "match"),
    [
        ([""], "auto", "The path of an input is empty"),
        (["gone.warc"], "auto", "gone.warc does not exist: give a file, a folder, a glob or a list of paths"),
        (["*.warc"], "auto", "holds no file of a readable kind: .warc and .wet"),
        (["a.pdf"], "auto", r"a.pdf is of no readable kind: .*say what it is \(format=warc\)"),
        (["a.pdf"], "wark", "warc"),
        (["ftp://host/a.warc"], "auto", "ftp:// is no known kind of storage; use gs://, s3://, https://"),
        (["https://host/*.warc"], "auto", "servers of https:// have no list of their files; give a list of paths"),
        (["https://me:pass@host/a.warc"], "auto", r"\(hidden\).*holds a secret"),
    ],
)  # fmt: skip
def test_what_cannot_be_found_is_an_error_that_says_why(paths, format, match, tmp_path, monkeypatch):
    put(tmp_path, "a.pdf")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=match):
        found(*paths, format=format)


def test_a_changed_file_has_another_stamp(tmp_path):
    put(tmp_path, "a.wet", content=b"1")
    (before,) = found(tmp_path)
    put(tmp_path, "a.wet", content=b"2")
    os.utime(tmp_path / "a.wet", ns=(0, 0))  # as tools that keep times do
    (after,) = found(tmp_path)
    assert before.stamp != after.stamp


FOLDER = b"crawl-data/CC-MAIN-2024-22/segments/1/wet/"
LINES = FOLDER + b"a.warc.wet.gz\n\n" + FOLDER + b"b.warc.wet.gz\n"


@pytest.mark.parametrize("name", ["wet.paths.gz", "wet.paths"])
def test_a_list_of_common_crawl_is_read_here_or_from_its_address(name, tmp_path):
    put(tmp_path, name, content=gzip.compress(LINES) if name.endswith("gz") else LINES)
    here = "crawl-data/CC-MAIN-2024-22/segments/1/wet/a.warc.wet.gz"
    there = here.replace("a.warc", "b.warc")
    assert [file.path for file in found(tmp_path / name)] == [COMMON_CRAWL + here, COMMON_CRAWL + there]
    put(tmp_path, here, content=b"four")
    first, second = found(tmp_path / name)
    assert (first.path, first.name, first.num_bytes) == (str(tmp_path / here), here, 4)
    assert (second.path, second.name, second.format, second.compression) == (
        COMMON_CRAWL + there,
        there,
        "warc",
        "gz",
    )


@pytest.mark.parametrize(
    "line", ["../a.wet", "/etc/a.wet", "b/../../a.wet", "s3://b/a.wet", "b\\a.wet", "./a.wet", "a\x1b.wet"]
)
def test_a_name_in_a_list_that_climbs_out_of_its_folder_is_refused(line, tmp_path):
    put(tmp_path, "a.wet", "in/b/c")
    put(tmp_path / "in", "my.paths", content=b"# mine\n" + line.encode() + b"\n")
    with pytest.raises(UserError, match=r"my.paths, line 2: .* does not lie below the list's folder"):
        found(tmp_path / "in" / "my.paths")


def test_a_list_that_is_wrong_names_the_line(tmp_path):
    put(tmp_path, "a.wet")
    put(tmp_path, "gone.paths", content=b"a.wet\nb.wet\n")
    put(tmp_path, "odd.paths", content=b"a.wet\n\xff\n")
    put(tmp_path, "cut.paths.gz", content=gzip.compress(LINES * 9)[:-20])
    for name, match in (("gone.paths", "line 2: .*b.wet does not exist"), ("odd.paths", "line 2 is not UTF-8"),
                        ("cut.paths.gz", "is truncated or damaged")):  # fmt: skip
        with pytest.raises(UserError, match=match):
            found(tmp_path / name)


def test_lines_of_json_are_cut_where_a_line_starts(tmp_path):
    lines = [b'{"text": "%s"}\n' % (b"x" * size) for size in (10, 3000, 5, 5, 1, 40)]
    put(tmp_path, "a.jsonl", content=b"".join(lines))
    put(tmp_path, "b.jsonl.gz", content=gzip.compress(b"".join(lines)))
    put(tmp_path, "c.warc", content=b"".join(lines))
    plain, packed, warc = found(tmp_path)
    parts = cut(plain, 40)
    content = (tmp_path / "a.jsonl").read_bytes()
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert (parts[0].start, parts[-1].stop) == (0, len(content))
    assert [content[part.start : part.stop] for part in parts] == [
        b"".join(lines[:2]),
        b"".join(lines[2:5]),
        lines[5],
    ]
    assert cut(packed, 40) == [RawPart(packed, 0, packed.num_bytes)]
    assert cut(warc, 40) == [RawPart(warc, 0, warc.num_bytes)]


def test_a_file_that_is_gone_or_locked_cannot_be_opened(tmp_path):
    file = RawFile(str(tmp_path / "a.warc"), "a.warc", "warc", "", 1, "")
    with pytest.raises(UserError, match=r"a.warc cannot be read \(No such file or directory\)"):
        open_bytes(file)
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        open_bytes(RawFile(str(tmp_path), "a.warc", "warc", "", 1, ""))


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_missing_package_of_a_store_is_named(scheme, monkeypatch):
    package = {"s3": "s3fs", "gs": "gcsfs"}[scheme]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UserError,
        match=rf"needs a package that is not installed. Install it \(pip install fsspec {package}\)",
    ):
        found(f"{scheme}://bucket/a.warc.gz")


class Flaky(io.BytesIO):
    """Breaks off after every 1,000 bytes."""

    def __init__(self, content, breaks=True):
        super().__init__(content)
        self.left = 1000 if breaks else len(content)

    def read(self, size=-1):
        if self.left <= 0:
            raise ConnectionResetError("by peer")
        block = super().read(min(size, self.left))
        self.left -= len(block)
        return block


def test_a_stream_that_breaks_off_is_opened_again_where_it_was():
    content, waits, opened = bytes(range(256)) * 20, [], []

    def opener():
        opened.append(True)
        return Flaky(content)

    stream = remote._Stream("https://host/a", opener, waits.append)
    with io.BufferedReader(stream, 512) as reader:
        assert reader.read() == content
        reader.seek(7)
        assert reader.read(3) == content[7:10]
    assert len(opened) > 5
    assert waits == [1.0] * (len(opened) - 1)


def test_a_store_that_stays_away_is_an_error_after_a_few_tries():
    waits = []

    def opener():
        raise ConnectionResetError("by peer")

    with pytest.raises(
        UserError, match=r"https://host/a cannot be reached \(ConnectionResetError: by peer\)"
    ):
        remote._Stream("https://host/a", opener, waits.append)
    assert waits == [1.0, 2.0, 4.0, 8.0]

    def gone():
        raise FileNotFoundError

    with pytest.raises(UserError, match=r"https://host/a cannot be read \(FileNotFoundError\)"):
        remote._Stream("https://host/a", gone, waits.append)
    assert len(waits) == 4


@pytest.mark.parametrize("pattern", ["", "*.txt"])
def test_one_unreadable_file_of_many_is_a_fault(tmp_path, pattern):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    account = Account()
    (found,) = find_files([os.path.join(tmp_path, pattern)], "auto", account)
    assert found.name == "a.txt"
    assert account.faults == {"unreadable": 2}
    assert "gone.txt, all of it: " in account.examples["unreadable"][0]
    with pytest.raises(UserError, match=r"gone\.txt is a link to nothing"):
        find_files([os.path.join(tmp_path, pattern)], "auto", Account(strict=True))
    with pytest.raises(UserError, match=r"pipe\.txt is no file but a pipe"):
        find_files([str(tmp_path / "pipe.txt")], "auto", Account())


def test_a_data_set_of_the_hub_is_fetched_and_read_as_files(tmp_path, monkeypatch):
    import huggingface_hub

    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')
    asked = []

    def fetch(name, **options):
        asked.append((name, options["revision"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    (file,) = find_files(["hf://datasets/me/texts@v1"], "auto", Account())
    assert asked == [("me/texts", "v1")]
    assert (file.path, file.format) == (str(tmp_path / "train.jsonl"), "jsonl")
    with pytest.raises(UserError, match="is written hf://datasets/OWNER/NAME"):
        find_files(["hf://me/texts"], "auto", Account())
