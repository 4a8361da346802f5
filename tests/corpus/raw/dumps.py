"""Dumps of a small wiki, written out by hand."""

import bz2
from pathlib import Path

from jaxlm.corpus.raw.document import Account
from jaxlm.corpus.raw.files import RawFile, RawOptions, RawPart
from jaxlm.corpus.raw.wikipedia import cut_wikipedia, read_wikipedia

HEAD = """\
<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="bn">
  <siteinfo>
    <sitename>উইকিপিডিয়া</sitename>
    <dbname>bnwiki</dbname>
    <base>https://bn.wikipedia.org/wiki/%E0%A6%AA%E0%A7%8D</base>
    <case>first-letter</case>
    <namespaces>
      <namespace key="0" case="first-letter" />
      <namespace key="6" case="first-letter">আলোকচিত্র</namespace>
      <namespace key="14" case="first-letter">শ্রেণিকরণ</namespace>
    </namespaces>
  </siteinfo>
"""
TAIL = "</mediawiki>\n"


def page(number, title, text, *, ns=0, extra="", model="wikitext"):
    return f"""\
  <page>
    <title>{title}</title>
    <ns>{ns}</ns>
    <id>{number}</id>
    {extra}
    <revision>
      <id>{1000 + number}</id>
      <timestamp>2026-01-0{number % 9 + 1}T00:00:00Z</timestamp>
      <contributor><username>A</username><id>7</id></contributor>
      <comment>[[b]]</comment>
      <model>{model}</model>
      <format>text/x-wiki</format>
      <text bytes="3" sha1="x" xml:space="preserve">{text}</text>
    </revision>
  </page>
"""


PAGES = [
    page(12, "ঢাকা", "'''ঢাকা''' [[বাংলাদেশ]]ের রাজধানী।\n[[আলোকচিত্র:ক.jpg|খ]]\n== ইতিহাস ==\nমুঘল র‍্যাব।\n[[শ্রেণিকরণ:শহর]]"),
    page(13, "AC/DC (band)?", "A &lt;b&gt;band&lt;/b&gt; &amp;amp; more. {{x|&quot;}}"),
    page(14, "রাজধানী", "#পুনর্নির্দেশ [[ঢাকা]]", extra='<redirect title="ঢাকা" />'),
    page(15, "Old", "#REDIRECT[[AC/DC]]"),
    page(16, "Talk:Old", "Not an article.", ns=1),
    page(17, "Mercury", "Mercury may be:\n* [[a]]\n{{দ্ব্যর্থতা নিরসন}}"),
    page(18, "Styles", "a { b }", model="css"),
    page(19, "Nothing", "{{infobox}}"),
    page(12, "ঢাকা", "আবার।"),
    page(20, "Last", "The last page."),
]  # fmt: skip
TEXTS = {
    "bnwiki:12": "ঢাকা বাংলাদেশের রাজধানী।\n\nইতিহাস\n\nমুঘল র‍্যাব।",
    "bnwiki:13": "A band & more.",
    "bnwiki:20": "The last page.",
}
DROPPED = {
    "redirect": 2,
    "other_namespace": 1,
    "disambiguation": 1,
    "other_model": 1,
    "empty": 1,
    "duplicate_id": 1,
}


def multistream(head, groups, tail=TAIL):
    """As Wikimedia writes it: a stream for the head, one for each group of pages, one for the tail."""
    return b"".join(
        bz2.compress(text.encode()) for text in (head, *("".join(group) for group in groups), tail)
    )


def raw_file(path: Path, content: bytes, compression=""):
    path.write_bytes(content)
    return RawFile(str(path), path.name, "wikipedia", compression, len(content), "")


def read(file, unit_bytes=None, options=None, strict=False):
    account = Account(strict=strict)
    parts = [RawPart(file, 0, file.num_bytes)] if unit_bytes is None else cut_wikipedia(file, unit_bytes)
    documents = [d for part in parts for d in read_wikipedia(part, options or RawOptions(), account)]
    return documents, account
